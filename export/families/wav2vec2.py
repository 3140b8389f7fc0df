"""wav2vec 2.0: raw sound → letters (Baevski et al., arXiv 2006.11477)."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import Wav2Vec2ForCTC

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.ctc import ctc_plan
from edgemm.export.model_plan import ModelPlan

MODEL_TYPE = "wav2vec2"
TASKS = ("transcribe",)
NEEDS: Mapping[str, tuple[str, ...]] = {"audio encoder": ("wav2vec2.encoder.layers.", "lm_head.")}


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: input_values → logits of the letters."""
    return ctc_plan(checkpoint, MODEL_TYPE, Wav2Vec2ForCTC)
