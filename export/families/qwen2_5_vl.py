"""Qwen2.5-VL: as Qwen2-VL, with windows in most blocks of the tower and time in seconds (arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.qwen_vision import Tower, vision_language_plan

MODEL_TYPE = "qwen2_5_vl"
TASKS = ("answer", "caption")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("visual.blocks.", "visual.merger."),
    "language model": ("model.layers.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Three graphs: vision_encoder (tower and merger), decoder, embed_tokens."""
    return vision_language_plan(checkpoint, Qwen2_5_VLForConditionalGeneration, "qwen_vl", _tower, _options)


def _edge(vision: Any) -> int:
    """The edge of an attention window in tokens."""
    return int(vision.window_size // vision.spatial_merge_size // vision.patch_size)


def _tower(vision: Any) -> Tower:
    return Tower(
        width=vision.hidden_size,
        heads=vision.num_heads,
        windowed=frozenset(range(vision.depth)) - frozenset(vision.fullatt_block_indexes),
        window_patches=(_edge(vision) * vision.spatial_merge_size) ** 2,
    )


def _options(vision: Any) -> dict[str, Any]:
    return {"window": _edge(vision), "tokens_per_s": float(vision.tokens_per_second)}
