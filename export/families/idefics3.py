"""Idefics3: pictures and a question → an answer (Laurençon et al., arXiv 2408.12637)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Idefics3ForConditionalGeneration

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.tiles_vlm import tiles_plan

MODEL_TYPE = "idefics3"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("model.vision_model.encoder.layers.", "model.connector."),
    "language model": ("model.text_model.layers.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and connector), decoder, embed_tokens."""
    return tiles_plan(Idefics3ForConditionalGeneration, checkpoint, MODEL_TYPE, TASKS)
