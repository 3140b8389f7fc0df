"""Learning from a teacher's hidden states: hints (FitNets, Romero et al., arXiv 1412.6550) at several layers.

A layer of the student and one of the teacher see the same inputs; what the student's makes of them, after a learned
projection to the teacher's width, should be what the teacher's makes. The projections are left behind in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.train.objectives.base import IGNORED, Batch
from edgemm.export.train.students import taken_from

Kind = Literal["mse", "cosine"]
KINDS: tuple[Kind, ...] = ("mse", "cosine")
Seen = dict[nn.Module, torch.Tensor]


@dataclass(frozen=True)
class Layers:
    """A layer of the student, and the one of the teacher that it is compared with, by their names."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Shape:
    """Widths of two layers' hidden states, and how many times larger the teacher's are to begin with."""

    own: int
    theirs: int
    times: float = 1.0


class Features(nn.Module):
    """The distance of hidden states of pairs of layers.

    `mse` is over the mean square of the teacher's, so that a weight means the same at every layer; `cosine` is
    1 - the cosine of every place.
    """

    scales: torch.Tensor

    def __init__(self, pairs: Sequence[tuple[nn.Module, nn.Module]], shapes: Sequence[Shape], kind: Kind) -> None:
        super().__init__()
        self._pairs = tuple(pairs)  # of other models: not this one's own
        self._kind = kind
        self.projections = nn.ModuleList(_projection(shape.own, shape.theirs) for shape in shapes)
        # Beside the weights, not in them: a projection learns as fast whatever the size of the states.
        self.register_buffer("scales", torch.tensor([shape.times for shape in shapes]))

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """The hidden states of both models while they run in the block."""
        with watching([layer for pair in self._pairs for layer in pair]) as seen:
            yield seen

    def forward(self, seen: Seen, part: Batch) -> torch.Tensor:
        """The mean distance over the pairs that ran, at the places of `part` that count."""
        losses = [
            self._loss(project(_wide(seen[own])) * scale, _wide(seen[theirs]), part)
            for project, scale, (own, theirs) in zip(self.projections, self.scales, self._pairs, strict=True)
            if own in seen and theirs in seen
        ]
        return torch.stack(losses).mean()

    def _loss(self, own: torch.Tensor, theirs: torch.Tensor, part: Batch) -> torch.Tensor:
        counts = _counted(part, own)
        own, theirs = (x.float() if counts is None else x[counts].float() for x in (own, theirs))
        if self._kind == "cosine":
            return (1 - nn.functional.cosine_similarity(own, theirs, dim=-1)).mean()
        return nn.functional.mse_loss(own, theirs) / theirs.square().mean()


def features_between(
    student: Any, teacher: Any, part: Batch, *, chosen: Sequence[str] = (), kind: Kind = "mse"
) -> Features:
    """Pairs of layers of two models of one kind that both run on `part`, with projections as wide as they need.

    `chosen` are names of the student's layers, or their ends, each alone or as `STUDENT=TEACHER`; without them every
    layer of the student has the teacher's at the same place of the depth. Raises UsageError for names that are not
    known, and where no two layers fit.
    """
    own, theirs = named_layers(student), named_layers(teacher)
    pairs = [_asked(text, own, theirs) for text in chosen] or _spread(own, theirs)
    shapes = _shapes(student, teacher, part, [(own[p.student], theirs[p.teacher]) for p in pairs])
    fits = [(pair, shape) for pair, shape in zip(pairs, shapes, strict=True) if shape is not None]
    if not fits or (chosen and len(fits) < len(pairs)):
        names = ", ".join(p.student for p in pairs[:4]) or "no layer"
        raise UsageError(
            f"{names}: student and teacher do not both give hidden states of the same places there",
            hint="leave --feature-layer out, or --features 0",
        )
    layers = [(own[pair.student], theirs[pair.teacher]) for pair, _ in fits]
    return Features(layers, [shape for _, shape in fits], kind)


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of every stack of a model, by name: equal modules in a list that is inside no other."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.startswith(inside) or not len(module):
            continue
        inside = (*inside, f"{name}.")
        if len({type(m) for m in module}) == 1 and any(True for _ in module[0].children()):
            found |= {f"{name}.{i}": layer for i, layer in enumerate(module)}
    return found


@contextmanager
def watching(layers: Sequence[nn.Module]) -> Iterator[Seen]:
    """What `layers` last gave out, [B, T, D] or [B, C, H, W], while they run in the block."""
    seen: Seen = {}

    def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            seen[layer] = value

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _spread(own: Mapping[str, nn.Module], theirs: Mapping[str, nn.Module]) -> list[Layers]:
    counts, of = _counts(own), _counts(theirs)
    pairs = []
    for name in own:
        place, _, index = name.rpartition(".")
        if place in of:
            pairs.append(Layers(name, f"{place}.{taken_from(int(index), counts[place], of[place])}"))
    return pairs


def _counts(layers: Mapping[str, nn.Module]) -> dict[str, int]:
    places = [name.rpartition(".")[0] for name in layers]
    return {place: places.count(place) for place in places}


def _asked(text: str, own: Mapping[str, nn.Module], theirs: Mapping[str, nn.Module]) -> Layers:
    one, equals, other = (word.strip() for word in text.partition("="))
    student = _known(one, own, "student")
    if equals:
        return Layers(student, _known(other, theirs, "teacher"))
    found = next((p for p in _spread(own, theirs) if p.student == student), None)
    if found is None:
        raise UsageError(f"the teacher has no layer at the place of {one!r}", hint=f"name it: {one}=LAYER")
    return found


def _known(word: str, layers: Mapping[str, nn.Module], whose: str) -> str:
    found = [name for name in layers if name == word or name.endswith(f".{word}")]
    if len(found) != 1:
        what = "no layer" if not found else f"{len(found)} layers"
        stacks = ", ".join(f"{place}.0 … {count - 1}" for place, count in _counts(layers).items())
        raise UsageError(f"the {whose} has {what} called {word!r}", hint=f"it has {stacks}")
    return found[0]


def _shapes(
    student: Any, teacher: Any, part: Batch, pairs: Sequence[tuple[nn.Module, nn.Module]]
) -> list[Shape | None]:
    """What each pair's hidden states are like on `part`; None where they are not of the same places."""
    was = student.training
    with torch.no_grad(), watching([layer for pair in pairs for layer in pair]) as seen:
        student.eval()(**part)
        teacher.eval()(**part)
    student.train(was)
    return [_shape(pair, seen) for pair in pairs]


def _shape(pair: tuple[nn.Module, nn.Module], seen: Seen) -> Shape | None:
    own, theirs = (seen.get(layer) for layer in pair)
    if own is None or theirs is None or own.ndim != theirs.ndim or own.ndim not in (3, 4):
        return None
    if own.ndim == 3 and not any(isinstance(m, nn.Linear) for m in pair[0].modules()):
        return None  # a convolution over sound: its channels stand before its places
    own, theirs = _wide(own), _wide(theirs)
    if own.shape[:-1] != theirs.shape[:-1]:
        return None
    times = (theirs.square().mean() / own.square().mean()).sqrt()
    return Shape(own.shape[-1], theirs.shape[-1], float(times) if times.isfinite() else 1.0)


def _wide(states: torch.Tensor) -> torch.Tensor:
    """Hidden states with their channels last."""
    return states.movedim(1, -1) if states.ndim == 4 else states


def _projection(own: int, theirs: int) -> nn.Linear:
    layer = nn.Linear(own, theirs, bias=False)
    if own == theirs:
        nn.init.eye_(layer.weight)
    return layer


def _counted(part: Batch, states: torch.Tensor) -> torch.Tensor | None:
    """Which places of states [B, T, D] are no padding, where the batch says so for as many."""
    for name in ("attention_mask", "labels"):
        mask = part.get(name)
        if isinstance(mask, torch.Tensor) and mask.shape == states.shape[:-1]:
            return mask != 0 if name == "attention_mask" else mask != IGNORED
    return None
