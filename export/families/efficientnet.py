"""EfficientNet: a picture → its classes (Tan and Le, arXiv 1905.11946)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import EfficientNetForImageClassification

from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.image_spec import twice_normalized_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.taggers import Sight, picture_tagger

MODEL_TYPE = "efficientnet"
TASKS = ("classify",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("efficientnet.encoder.", "classifier.")}


class Mean(nn.Module):
    """[B, C, H, W] → [B, C, 1, 1]. The original's pooling window is larger than the picture, which runtimes refuse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return x.mean((2, 3), keepdim=True)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values → logits."""
    if checkpoint.config.get("pooling_type", "mean") != "mean":
        raise CheckpointError(f"{checkpoint.path} pools by {checkpoint.config['pooling_type']!r}: expected 'mean'")
    original, traced = load_pair(EfficientNetForImageClassification, checkpoint)
    traced.efficientnet.pooler = Mean()
    spec = twice_normalized_spec(checkpoint.json("preprocessor_config.json"), original.config.image_size)
    return picture_tagger(MODEL_TYPE, original, traced, Sight(spec))
