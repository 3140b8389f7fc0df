"""Qwen3-VL: deep features of the tower go into the first layers of the language model (arXiv 2511.21631)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3VLForConditionalGeneration

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.qwen_vision import Tower, vision_language_plan

MODEL_TYPE = "qwen3_vl"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("model.visual.blocks.", "model.visual.merger."),
    "language model": ("model.language_model.layers.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and mergers), decoder, embed_tokens."""
    return vision_language_plan(checkpoint, Qwen3VLForConditionalGeneration, "qwen3_vl", _tower, _options)


def _tower(vision: Any) -> Tower:
    return Tower(
        width=vision.hidden_size,
        heads=vision.num_heads,
        deepstack=tuple(vision.deepstack_visual_indexes),
        table=True,
    )


def _options(vision: Any) -> dict[str, Any]:
    return {"position_side": int(vision.num_position_embeddings**0.5), "video_budget": "clip"}
