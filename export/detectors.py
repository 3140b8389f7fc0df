"""What the detectors share: picture specs, folded norms, masks inside a backbone, and the plan of their one graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import PreTrainedModel

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import EdgesSpec, ImageSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.image_spec import edges_spec, image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import BATCH

Tensors = tuple[torch.Tensor, ...]
Scoring = Literal["softmax", "sigmoid"]
_STRIDE_PX = 32
_DRAWS, _CLEAR = 8, 0.02


def load(cls: type[PreTrainedModel], checkpoint: Checkpoint) -> tuple[Any, Any]:
    """`load_pair`, with a word for backbones of another package."""
    try:
        return load_pair(cls, checkpoint)
    except ImportError as error:
        raise CheckpointError(
            f"{checkpoint.path} cannot be loaded: {str(error).strip().splitlines()[0]}",
            hint="run: pip install timm (its backbone is that package's)",
        ) from error


def detector_spec(checkpoint: Checkpoint, *, multiple_px: int = 1, canvas: bool) -> ImageSpec:
    """The spec of a detector's processor. With `canvas` pictures whose shape is kept are padded to a fixed one."""
    config = checkpoint.json("preprocessor_config.json")
    size = config.get("size")
    if isinstance(size, Mapping) and "height" in size:
        return image_spec(config, int(size["height"]))
    return edges_spec(config, multiple_px=multiple_px, stride_px=_STRIDE_PX if canvas else None)


def size_px(spec: ImageSpec) -> tuple[int, int]:
    """(height, width) of the pictures that a spec with one size makes."""
    if isinstance(spec, EdgesSpec):
        assert spec.canvas_px is not None
        return spec.canvas_px
    return spec.height_px, spec.width_px  # type: ignore[union-attr]


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm, frozen or not, into the convolution that stands before it in the same module."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (before, conv), (name, norm) in pairwise(children):
            is_norm = hasattr(norm, "running_mean") and hasattr(norm, "running_var")
            if isinstance(conv, nn.Conv2d) and is_norm and norm.running_mean.shape[0] == conv.out_channels:
                setattr(parent, before, _folded(conv, norm))
                setattr(parent, name, nn.Identity())


def _folded(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    # The frozen norms of these families have no eps of their own: it is written out in their forward.
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, getattr(norm, "eps", 1e-5), norm.weight, norm.bias
    )
    conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return conv


class Padding:
    """Which pixels of the picture under way are real. Shared by the layers of one backbone."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """The mask [B, 1, H', W'] at the stride of `x` [B, C, H', W']: every stride-th pixel, as strides pick them."""
        assert self.mask is not None
        stride = self.mask.shape[1] // x.shape[2]
        return self.mask[:, None, ::stride, ::stride].to(x.dtype)


class InsidePadding(nn.Module):
    """A layer that looks at neighbours and sees, past the picture's edge, what it would see without the canvas."""

    def __init__(self, layer: nn.Module, padding: Padding) -> None:
        super().__init__()
        self.layer, self.padding = layer, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H', W'], at the stride of its own resolution."""
        mask = self.padding.at(x)
        pools = isinstance(self.layer, nn.MaxPool2d)
        inside = x + (mask - 1) * (torch.finfo(x.dtype).max / 2) if pools else x * mask
        y: torch.Tensor = self.layer(inside)
        return y


def mask_neighbours(backbone: nn.Module) -> Padding:
    """Wrap every layer of `backbone` whose window is over a pixel, so that padding never leaks into the picture."""
    padding = Padding()
    for parent in list(backbone.modules()):
        for name, layer in list(parent.named_children()):
            wide = isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
            if wide or isinstance(layer, nn.MaxPool2d):
                setattr(parent, name, InsidePadding(layer, padding))
    return padding


class TopKDetector(nn.Module):
    """pixel_values → logits, pred_boxes of the queries that the encoder scores best (RT-DETR and its kin)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.detector = model

    def forward(self, feeds: Feeds) -> Tensors:
        """See the class."""
        with without_checks(self.detector):
            found = self.detector(feeds["pixel_values"])
        return found.logits, found.pred_boxes


@contextmanager
def without_checks(model: Any) -> Iterator[None]:
    """Without the module's own check of shapes, which are constants here: as a tensor it has no ONNX operator."""
    module, name = sys.modules[type(model).__module__], "torch_compilable_check"
    before = getattr(module, name)
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, before)


@dataclass(frozen=True)
class Detector:
    """What `detector_plan` needs of a family: the untouched model, and the graph of the traced one."""

    original: Any
    graph: GraphPlan
    spec: ImageSpec
    scoring: Scoring


def top_k_plan(cls: type[PreTrainedModel], checkpoint: Checkpoint, model_type: str) -> ModelPlan:
    """The plan of RT-DETR, RT-DETR v2 and D-FINE: one graph, pictures of one size, sigmoid scores."""
    original, traced = load(cls, checkpoint)
    fold_norms(traced)
    spec = detector_spec(checkpoint, canvas=True)
    graph = GraphPlan(
        role="model",
        module=TopKDetector(traced),
        inputs=(Port("pixel_values", torch.float32, ("batch", 3, *size_px(spec))),),
        outputs=outputs(traced.config.num_queries, traced.config.num_labels),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
        make=clear_pictures(traced, size_px(spec)),
        float_modules=("detector.model.decoder", "detector.model.enc_"),
        unordered=True,
    )
    return detector_plan(checkpoint, model_type, Detector(original, graph, spec, "sigmoid"))


def outputs(queries: int, classes: int) -> tuple[Port, ...]:
    """The two outputs of every detector's graph."""
    return (
        Port("logits", torch.float32, ("batch", queries, classes)),
        Port("pred_boxes", torch.float32, ("batch", queries, 4)),
    )


def clear_pictures(model: Any, size_hw: tuple[int, int]) -> Callable[[Sizes, torch.Generator], Feeds]:
    """Random pictures whose last picked query and first dropped one differ in score, so that rounding picks alike."""

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        return {"pixel_values": torch.cat([one(rng) for _ in range(sizes["batch"])])}

    def one(rng: torch.Generator) -> torch.Tensor:
        best, widest = torch.empty(0), -1.0
        for _ in range(_DRAWS):
            picture = torch.randn((1, 3, *size_hw), generator=rng)
            gap = _gap(model, picture)
            if gap > widest:
                best, widest = picture, gap
            if gap > _CLEAR:
                break
        return best

    return make


def _gap(model: Any, picture: torch.Tensor) -> float:
    with torch.no_grad():
        scores = model.model(picture).enc_outputs_class.max(-1).values[0]
    queries = model.config.num_queries
    if len(scores) <= queries:
        return float("inf")
    best = scores.topk(queries + 1).values
    return float((best[-2] - best[-1]) / scores.std())


def detector_plan(checkpoint: Checkpoint, model_type: str, detector: Detector) -> ModelPlan:
    """The plan of a detector: its graph, labels, and what the original makes of an example."""
    spec, graph = detector.spec, detector.graph
    dims = {p.name: tuple(d if isinstance(d, int) else 0 for d in p.dims) for p in graph.inputs}
    classes = graph.outputs[0].dims[-1]
    names = detector.original.config.id2label

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        from edgemm.processing.image import preprocess
        from edgemm.tasks.detect import graph_feeds

        if example.image is None:
            return {}
        return {"model": graph_feeds(preprocess(example.image, spec), spec, dims)}

    def reference(example: Example) -> Reference:
        return Reference(rows=as_rows(*_ask(detector, example.image), detector.scoring))

    return ModelPlan(
        model_type=model_type,
        tasks=("detect",),
        graphs=(graph,),
        processing=Processing(image=spec, functions={"detect": detector.scoring}),
        labels=tuple(str(names.get(i, i)) for i in range(int(classes))),
        feeds=feeds,
        reference=reference,
        original=Original(detector.original),
    )


def _ask(detector: Detector, image: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The original's logits [Q, C] and boxes [Q, 4], of the picture as its own processor gives it: without a canvas."""
    from edgemm.processing.image import preprocess

    spec = detector.spec
    if isinstance(spec, EdgesSpec) and spec.shortest_edge is not None:
        spec = spec.model_copy(update={"canvas_px": None})
    with torch.no_grad():
        found = detector.original(torch.from_numpy(preprocess(image, spec).pixel_values))
    return found.logits[0].numpy(), found.pred_boxes[0].numpy()


def as_rows(logits: NDArray[np.float32], boxes: NDArray[np.float32], scoring: Scoring) -> NDArray[np.float32]:
    """[Q, C + 4]: every query's probabilities and box, which may be compared in any order."""
    values = torch.from_numpy(logits)
    scores = values.softmax(-1) if scoring == "softmax" else values.sigmoid()
    return np.concatenate([scores.numpy(), boxes], 1)
