"""Weights rounded as export rounds them, while they are trained: fake quantization (Jacob et al., arXiv 1712.05877).

What is trained are the weights between the steps; what the model computes with are the nearest steps. The gradient of
rounding is taken for one (the straight-through estimator, Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgemm.bundle.manifest import Precision
from edgemm.errors import UsageError
from edgemm.export import families
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.graph import trace
from edgemm.export.model_plan import ModelPlan
from edgemm.export.precision import calibration
from edgemm.export.precision.grids import Grid, rounded_matrices
from edgemm.export.precision.rounding import CLIPS, RANGES

Save = Callable[[Path], None]


@dataclass(frozen=True)
class Place:
    """A parameter's grid; `turned` where the parameter is [outputs, …] and the graph's matrix [K, N] has inputs first.

    Linear layers, convolutions and tables are; GPT-2's own layers are not.
    """

    grid: Grid
    turned: bool = True

    def matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        """The parameter as the graph has it, [K, N]."""
        return parameter.flatten(1).T if self.turned else parameter

    def parameter(self, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The other way."""
        return (matrix.T if self.turned else matrix).reshape(like.shape)


def places_of(save: Save, asked: Precision) -> dict[str, Place]:
    """The grid of every parameter that export would round, by its name; `save` writes the checkpoint.

    The graphs of the checkpoint are traced, and what they multiply by is found again among its parameters.
    """
    with tempfile.TemporaryDirectory(prefix="edgemm-") as folder:
        place = Path(folder) / "checkpoint"
        save(place)
        source = find_checkpoint(place)
        return _places_of(families.find(source.model_type).plan(source), asked)


def _places_of(plan: ModelPlan, asked: Precision) -> dict[str, Place]:
    assert plan.original is not None
    names: dict[str, list[tuple[str, bool]]] = {}
    for name, parameter in plan.original.model.named_parameters():
        values = parameter.detach()
        if values.ndim > 1:
            names.setdefault(_digest(values.flatten(1).T.numpy()), []).append((name, True))
        if values.ndim == 2:
            names.setdefault(_digest(values.numpy()), []).append((name, False))
    fed = [] if plan.feeds is None else [plan.feeds(example) for example in calibration.synthetic_examples()]
    found: dict[str, Place] = {}
    for graph in plan.graphs:
        calibrated = any(graph.role in feeds for feeds in fed)
        for rounded in rounded_matrices(trace(graph), graph, asked, calibrated=calibrated):
            for name, turned in names.get(_digest(rounded.matrix), ()):
                found.setdefault(name, Place(rounded.grid, turned))
    return found


def _digest(matrix: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(matrix, np.float32).tobytes()).hexdigest() + str(matrix.shape)


def on_grid(matrix: torch.Tensor, grid: Grid) -> torch.Tensor:
    """A matrix [K, N] on its grid: what DequantizeLinear makes of export's integers."""
    grouped = matrix.reshape(-1, grid.block, matrix.shape[1])
    steps = _steps(grouped, grid)[:, None]
    return (_integers(grouped, steps, grid.bits) * steps).reshape(matrix.shape)


def _steps(grouped: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The step of each block [B, N] of [B, size, N], as `rounding.plain` and `weights.quantize_blocks` choose it."""
    highest = RANGES[grid.bits][1]
    peaks = grouped.abs().amax(1)
    if not grid.search:
        steps = peaks / highest
        return torch.where(steps == 0, 1.0, steps)
    peaks = torch.where(peaks == 0, 1.0, peaks)
    best, steps = torch.full_like(peaks, torch.inf), peaks / highest
    for clip in CLIPS.astype(np.float32).tolist():
        tried = clip * peaks / highest
        lost = (grouped - _integers(grouped, tried[:, None], grid.bits) * tried[:, None]).square().sum(1)
        better = lost < best
        steps, best = torch.where(better, tried, steps), torch.where(better, lost, best)
    return steps


def _integers(grouped: torch.Tensor, steps: torch.Tensor, bits: int) -> torch.Tensor:
    return (grouped / steps).round().clamp(*RANGES[bits])


class Straight(torch.autograd.Function):
    """The second tensor, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, _weight: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return nearest.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """See the class."""
        return gradients[0], None


class Rounding:
    """The parameters of one model on their grids, made again where an optimizer has moved them."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        if not places:
            raise UsageError("export would round no matrix of this checkpoint", hint="leave --qat out")
        self.places = dict(places)
        self._known: dict[str, tuple[int, torch.Tensor]] = {}

    def nearest(self, model: nn.Module) -> dict[str, tuple[nn.Parameter, torch.Tensor]]:
        """Name → a parameter, and where it is on its grid."""
        parameters = dict(model.named_parameters())
        return {name: (parameters[name], self._nearest(name, parameters[name])) for name in self.places}

    def _nearest(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        version, value = self._known.get(name, (-1, parameter))
        if version != parameter._version or value.device != parameter.device:
            place = self.places[name]
            with torch.no_grad():
                nearest = on_grid(place.matrix(parameter.float()), place.grid)
                value = place.parameter(nearest, parameter).to(parameter.dtype).contiguous()
            self._known[name] = parameter._version, value
        return value

    def call(self, model: nn.Module, **inputs: Any) -> Any:
        """What the model makes of its inputs with rounded weights; gradients go to those between the steps."""
        weights = {name: Straight.apply(own, nearest) for name, (own, nearest) in self.nearest(model).items()}
        return torch.func.functional_call(model, weights, (), inputs)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model has its rounded weights as long as the block lasts."""
        changed = self.nearest(model)
        kept = {name: own.data for name, (own, _) in changed.items()}
        for own, nearest in changed.values():
            own.data = nearest
        try:
            yield
        finally:
            for name, (own, _) in changed.items():
                own.data = kept[name]
