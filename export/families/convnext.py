"""ConvNeXt: a picture → its classes (Liu et al., arXiv 2201.03545)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import ConvNextForImageClassification

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import share_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.taggers import Sight, picture_tagger

MODEL_TYPE = "convnext"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("convnext.encoder.", "classifier.")}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits."""
    original, traced = load_pair(ConvNextForImageClassification, checkpoint)
    spec = share_spec(checkpoint.json("preprocessor_config.json"))
    return picture_tagger(MODEL_TYPE, original, traced, Sight(spec))
