"""Qwen2-VL: pictures of any size, videos and a question → an answer (Wang et al., arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2VLForConditionalGeneration

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.qwen_vision import Tower, vision_language_plan

MODEL_TYPE = "qwen2_vl"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("visual.blocks.", "visual.merger."),
    "language model": ("model.layers.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and merger), decoder, embed_tokens."""
    return vision_language_plan(checkpoint, Qwen2VLForConditionalGeneration, "qwen_vl", _tower)


def _tower(vision: Any) -> Tower:
    return Tower(width=vision.embed_dim, heads=vision.num_heads)
