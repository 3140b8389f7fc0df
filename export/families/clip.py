"""CLIP: a tower for pictures and one for texts, trained on pairs (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import CLIPModel

from edgemm.export import dual
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds
from edgemm.export.image_spec import image_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import ModelPlan
from edgemm.export.tracing import causal_bias, use_plain_attention

MODEL_TYPE = "clip"
TASKS = ("embed", "classify", "retrieve", "recommend")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_model.encoder.layers.", "visual_projection."),
    "text encoder": ("text_model.encoder.layers.", "text_projection."),
}

_BICUBIC = 3


class TextTower(nn.Module):
    """input_ids, attention_mask [B, S] → text_features [B, D], pooled at the end token."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        ids = feeds["input_ids"]
        mask = causal_bias(feeds["attention_mask"], ids.shape[1], self.projection.weight.dtype)
        return (self.projection(self.tower(input_ids=ids, attention_mask=mask).pooler_output),)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Two graphs: vision_encoder, text_encoder."""
    original, traced = load_pair(CLIPModel, checkpoint)
    use_plain_attention(traced)
    config = traced.config
    spec = image_spec(
        {"resample": _BICUBIC} | checkpoint.json("preprocessor_config.json"), config.vision_config.image_size
    )
    similarity = dual.similarity_spec(
        checkpoint, scale=original.logit_scale.detach(), text_tokens=config.text_config.max_position_embeddings
    )
    vision = dual.Pooled(traced.vision_model, "pixel_values", traced.visual_projection)
    text = config.text_config
    # Early checkpoints name a wrong end token; there the highest id is the end.
    end = text.eos_token_id if text.eos_token_id != 2 else text.vocab_size - 1
    graphs = (
        dual.picture_plan(vision, (spec.height_px, spec.width_px), config.projection_dim),
        dual.text_plan(
            TextTower(traced.text_model, traced.text_projection),
            similarity,
            text.vocab_size,
            config.projection_dim,
            masked=True,
            end=end,
        ),
    )
    features = dual.original_features(original)
    return dual.dual_plan(checkpoint, MODEL_TYPE, graphs, similarity, features, original, image=spec)
