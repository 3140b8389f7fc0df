"""SigLIP 2 with NaFlex: pictures at their own aspect, as patches (Tschannen et al., arXiv 2502.14786)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Siglip2Model

from edgemm.bundle.spec import NaFlexSpec
from edgemm.export import dual
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.image_spec import naflex_spec
from edgemm.export.loading import load_pair
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.plans import BATCH
from edgemm.export.tracing import padding_bias, use_plain_attention
from edgemm.processing.naflex import position_weights, size_for

MODEL_TYPE = "siglip2"
TASKS = ("embed", "classify", "retrieve", "recommend")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "vision encoder": ("vision_model.encoder.layers.", "vision_model.head."),
    "text encoder": ("text_model.encoder.layers.", "text_model.head."),
}


class NaFlexTower(nn.Module):
    """pixel_values [B, T, patch], pixel_mask [B, T], aux.position_weights [B, T, P] → image_features [B, D].

    A picture's positions are its weights times the table [P, hidden].
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.patches = tower.embeddings.patch_embedding
        self.positions = tower.embeddings.position_embedding
        self.encoder, self.norm, self.head = tower.encoder, tower.post_layernorm, tower.head

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor]:
        """See the class."""
        bias = padding_bias(feeds["pixel_mask"], feeds["pixel_values"].dtype)
        x = self.patches(feeds["pixel_values"]) + feeds["aux.position_weights"] @ self.positions.weight
        x = self.encoder(inputs_embeds=x, attention_mask=bias).last_hidden_state
        return (self.head(self.norm(x), bias),)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """Two graphs: vision_encoder, text_encoder."""
    original, traced = load_pair(Siglip2Model, checkpoint)
    use_plain_attention(traced)
    text, vision = traced.config.text_config, traced.config.vision_config
    spec = naflex_spec(checkpoint.json("preprocessor_config.json"), vision)
    similarity = dual.sigmoid_spec(checkpoint, original, text.max_position_embeddings, lower_case=True)
    dim = text.projection_size or text.hidden_size
    graphs = (
        _vision_plan(NaFlexTower(traced.vision_model), spec, vision.hidden_size),
        dual.text_plan(dual.Pooled(traced.text_model, "input_ids"), similarity, text.vocab_size, dim, masked=False),
    )

    def see(feeds: Feeds, example: Example) -> Any:
        assert example.image is not None
        size = size_for(*example.image.shape[:2], spec.patch_px, spec.max_patches)
        return original.get_image_features(
            pixel_values=feeds["pixel_values"],
            pixel_attention_mask=feeds["pixel_mask"],
            spatial_shapes=torch.tensor([size]) // spec.patch_px,
        )

    features = see, dual.original_features(original)[1]
    return dual.dual_plan(checkpoint, MODEL_TYPE, graphs, similarity, features, original, image=spec)


def _vision_plan(module: nn.Module, spec: NaFlexSpec, dim: int) -> GraphPlan:
    """Traced and checked with real grids: a padded one, a square one and strips."""
    shapes = [size_for(h, w, spec.patch_px, spec.max_patches) for h, w in ((3, 4), (1, 1), (9, 2), (2, 9))]

    def make(sizes: Sizes, _: torch.Generator) -> Feeds:
        mask = torch.zeros(sizes["batch"], spec.max_patches, dtype=torch.int64)
        weights = torch.zeros(sizes["batch"], spec.max_patches, spec.grid**2)
        for i in range(sizes["batch"]):
            height, width = shapes[i % len(shapes)]
            found = position_weights(height // spec.patch_px, width // spec.patch_px, spec.grid)
            mask[i, : len(found)] = 1
            weights[i, : len(found)] = torch.from_numpy(found)
        return {"pixel_mask": mask, "aux.position_weights": weights}

    return GraphPlan(
        role="vision_encoder",
        module=module,
        inputs=(
            Port("pixel_values", torch.float32, ("batch", spec.max_patches, 3 * spec.patch_px**2)),
            Port("pixel_mask", torch.int64, ("batch", spec.max_patches)),
            Port("aux.position_weights", torch.float32, ("batch", spec.max_patches, spec.grid**2)),
        ),
        outputs=(Port("image_features", torch.float32, ("batch", dim)),),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 4}),
        make=make,
    )
