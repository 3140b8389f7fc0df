"""RT-DETR: a picture → objects, from the queries that its encoder scores best (Zhao et al., arXiv 2304.08069)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import RTDetrForObjectDetection

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import top_k_plan
from edgemm.export.model_plan import ModelPlan

MODEL_TYPE = "rt_detr"
TASKS = ("detect",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "picture network": ("model.backbone.", "model.encoder."),
    "box decoder": ("model.decoder.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits, pred_boxes."""
    return top_k_plan(RTDetrForObjectDetection, checkpoint, MODEL_TYPE)
