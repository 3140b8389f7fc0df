"""D-FINE: RT-DETR whose boxes are refined as distributions of their edges (Peng et al., arXiv 2410.13842)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import DFineForObjectDetection

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import top_k_plan
from edgemm.export.model_plan import ModelPlan

MODEL_TYPE = "d_fine"
TASKS = ("detect",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "picture network": ("model.backbone.", "model.encoder."),
    "box decoder": ("model.decoder.",),
}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits, pred_boxes."""
    return top_k_plan(DFineForObjectDetection, checkpoint, MODEL_TYPE)
