"""RT-DETR v2: RT-DETR with points of attention that are placed per level (Lv et al., arXiv 2407.17140)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import RTDetrV2ForObjectDetection

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import top_k_plan
from edgemm.export.model_plan import ModelPlan

MODEL_TYPE = "rt_detr_v2"
TASKS = ("detect",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "picture network": ("model.backbone.", "model.encoder."),
    "box decoder": ("model.decoder.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits, pred_boxes."""
    return top_k_plan(RTDetrV2ForObjectDetection, checkpoint, MODEL_TYPE)
