"""ViT: a picture → its classes (Dosovitskiy et al., arXiv 2010.11929)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import ViTForImageClassification

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.taggers import Sight, picture_tagger
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "vit"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("vit.encoder.", "classifier.")}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits."""
    original, traced = load_pair(ViTForImageClassification, checkpoint)
    use_plain_attention(traced)
    spec = image_spec(checkpoint.json("preprocessor_config.json"), original.config.image_size)
    return picture_tagger(MODEL_TYPE, original, traced, Sight(spec))
