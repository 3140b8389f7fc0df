"""HuBERT: raw sound → letters (Hsu et al., arXiv 2106.07447)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import HubertForCTC

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.ctc import ctc_plan
from edgemm.export.model_plan import ModelPlan

MODEL_TYPE = "hubert"
TASKS = ("transcribe",)
NEEDS: Mapping[str, tuple[str, ...]] = {"audio encoder": ("hubert.encoder.layers.", "lm_head.")}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: input_values → logits of the letters."""
    return ctc_plan(checkpoint, MODEL_TYPE, HubertForCTC)
