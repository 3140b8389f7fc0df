"""DINOv2: a picture → its features or, with a head, its classes (Oquab et al., arXiv 2304.07193)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Dinov2ForImageClassification, Dinov2Model

from edgemm.bundle.manifest import Processing
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.dual import Pooled, features_of, picture_plan, unit_vector
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.taggers import Sight, fixed_positions, has_head, picture_tagger
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "dinov2"
TASKS = ("classify", "embed", "retrieve", "recommend")
# With a head the names begin with "dinov2.", without one they don't; loading tells what is missing.
NEEDS: Mapping[str, tuple[str, ...]] = {}

_BICUBIC = 3


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: `model` with logits where the checkpoint has a head, else `vision_encoder`."""
    headed = has_head(checkpoint)
    cls = Dinov2ForImageClassification if headed else Dinov2Model
    original, traced = load_pair(cls, checkpoint)
    use_plain_attention(traced)
    settings = {"resample": _BICUBIC} | checkpoint.json("preprocessor_config.json")
    sight = Sight(image_spec(settings, original.config.image_size))
    fixed_positions(
        traced.dinov2.embeddings if headed else traced.embeddings, (sight.spec.height_px, sight.spec.width_px)
    )
    if headed:
        return picture_tagger(MODEL_TYPE, original, traced, sight)
    return _embedder(original, traced, sight)


def _embedder(original: Any, traced: Any, sight: Sight) -> ModelPlan:
    size = sight.spec.height_px, sight.spec.width_px

    def feeds(example: Example) -> dict[str, dict[str, NDArray[Any]]]:
        made = sight.prepare(example)
        return {"vision_encoder": made} if made else {}

    def reference(example: Example) -> Reference:
        with torch.no_grad():
            seen = original(**{k: torch.from_numpy(v) for k, v in sight.prepare(example).items()})
        return Reference(values=np.asarray(unit_vector(features_of(seen)), np.float32))

    return ModelPlan(
        model_type=MODEL_TYPE,
        tasks=("embed", "retrieve", "recommend"),
        graphs=(picture_plan(Pooled(traced, "pixel_values"), size, original.config.hidden_size),),
        processing=Processing(image=sight.spec),
        feeds=feeds,
        reference=reference,
        original=Original(original),
    )
