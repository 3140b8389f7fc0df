"""What the families of single-graph taggers share: pictures, clips or sound in, one score a class out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import KaldiMelSpec, RawAudioSpec, ResizeCropSpec, VideoSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import BATCH

Arrays = dict[str, NDArray[Any]]
Prepare = Callable[[Example], Arrays]


class Logits(nn.Module):
    """A transformers classifier: its input `name` [B, …] → logits [B, classes]."""

    def __init__(self, model: nn.Module, name: str = "pixel_values") -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        return (self.model(feeds[self.name]).logits,)


@dataclass(frozen=True)
class Sight:
    """What a tagger of pictures or clips takes: `frames` 0 means one picture."""

    spec: ResizeCropSpec
    frames: int = 0

    @property
    def port(self) -> Port:
        clip = (self.frames,) if self.frames else ()
        return Port("pixel_values", torch.float32, ("batch", *clip, 3, self.spec.height_px, self.spec.width_px))

    def prepare(self, example: Example) -> Arrays:
        """The graph's input; a picture is a clip that stands still."""
        from edgemm.processing.image import preprocess_many

        if example.image is None:
            return {}
        values = preprocess_many([example.image] * (self.frames or 1), self.spec).pixel_values
        return {"pixel_values": values[None] if self.frames else values}


def hear(example: Example, spec: KaldiMelSpec | RawAudioSpec) -> Arrays:
    """The graph's input of an example's sound."""
    from edgemm.export.precision.calibration import RATE_HZ
    from edgemm.processing.audio import to_mono_16k
    from edgemm.processing.features import prepare

    if example.audio is None:
        return {}
    made = prepare(to_mono_16k(example.audio, RATE_HZ, spec.sample_rate_hz), spec)
    return {made.name: made.values}


def single_graph(module: nn.Module, port: Port, classes: int) -> GraphPlan:
    """`model`: one input [B, …] of a fixed size → logits [B, classes]."""
    return GraphPlan(
        role="model",
        module=module,
        inputs=(port,),
        outputs=(Port("logits", torch.float32, ("batch", classes)),),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
    )


def picture_tagger(
    model_type: str, original: Any, traced: Any, sight: Sight, module: nn.Module | None = None
) -> ModelPlan:
    """The plan of a classifier of pictures or clips; `module` is what is traced in place of `traced` itself."""
    video = VideoSpec(frames=sight.frames) if sight.frames else None
    return tagger_plan(
        model_type,
        original.config,
        single_graph(module or Logits(traced), sight.port, original.config.num_labels),
        Processing(image=sight.spec, video=video, functions=functions(original.config)),
        sight.prepare,
        Original(original),
    )


def tagger_plan(
    model_type: str,
    config: Any,
    graph: GraphPlan,
    processing: Processing,
    prepare: Prepare,
    original: Original,
) -> ModelPlan:
    """One graph that classifies."""
    sigmoid = processing.functions.get("scores") == "sigmoid"

    def reference(example: Example) -> Reference:
        with torch.no_grad():
            inputs = original.renamed({k: torch.from_numpy(v) for k, v in prepare(example).items()})
            values = original.model(**inputs).logits[0]
        scores = values.sigmoid() if sigmoid else values.softmax(-1)
        return Reference(probabilities=np.asarray(scores.numpy(), np.float32))

    def feeds(example: Example) -> dict[str, Arrays]:
        made = prepare(example)
        return {"model": made} if made else {}

    return ModelPlan(
        model_type=model_type,
        tasks=("classify",),
        graphs=(graph,),
        processing=processing,
        labels=labels_of(config),
        feeds=feeds,
        reference=reference,
        original=original,
        takes="audio" if processing.audio is not None else "image",
    )


def functions(config: Any) -> dict[str, str]:
    """How logits become scores: several labels may hold at once where the checkpoint says so."""
    several = config.problem_type == "multi_label_classification"
    return {"classify": "tagger"} | ({"scores": "sigmoid"} if several else {})


def labels_of(config: Any) -> tuple[str, ...]:
    """The name of every class, in the order of the logits."""
    return tuple(str(config.id2label.get(i, i)) for i in range(config.num_labels))


def has_head(checkpoint: Checkpoint, prefix: str = "classifier.") -> bool:
    """Whether the checkpoint has a classification head."""
    return any(name.startswith(prefix) for name in checkpoint.shapes)


def fixed_positions(embeddings: Any, size_px: tuple[int, int]) -> None:
    """Make a vision transformer's positions a constant: stretched to the size of the graph's pictures beforehand."""
    height, width = size_px
    patch = embeddings.patch_size if isinstance(embeddings.patch_size, int) else embeddings.patch_size[0]
    if height % patch or width % patch:
        raise CheckpointError(f"pictures of {height} × {width} px are not whole patches of {patch} px")
    tokens = 1 + (height // patch) * (width // patch)
    with torch.no_grad():
        like = torch.zeros(1, tokens, embeddings.position_embeddings.shape[-1])
        table = embeddings.interpolate_pos_encoding(like, height, width).detach()
    embeddings.position_embeddings = nn.Parameter(table.clone(), requires_grad=False)
    # A method, so that a copy of the module reads the copy's own table.
    embeddings.interpolate_pos_encoding = MethodType(_own_positions, embeddings)


def _own_positions(embeddings: Any, *_: Any) -> torch.Tensor:
    positions: torch.Tensor = embeddings.position_embeddings
    return positions
