"""VideoMAE: a clip → its classes (Tong et al., arXiv 2203.12602)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import VideoMAEForVideoClassification

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.taggers import Sight, picture_tagger
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "videomae"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"video network": ("videomae.encoder.", "classifier.")}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values [B, frames, 3, H, W] → logits."""
    original, traced = load_pair(VideoMAEForVideoClassification, checkpoint)
    use_plain_attention(traced)
    spec = image_spec(checkpoint.json("preprocessor_config.json"), original.config.image_size)
    return picture_tagger(MODEL_TYPE, original, traced, Sight(spec, original.config.num_frames))
