"""DETR: a picture → objects, as a set that a transformer predicts at once (Carion et al., arXiv 2005.12872)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import DetrForObjectDetection

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import Detector, detector_plan, detector_spec, fold_norms, load, outputs, size_px
from edgemm.export.detectors import mask_neighbours as mask_of
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.model_plan import ModelPlan
from edgemm.export.plans import BATCH
from edgemm.export.tracing import use_plain_attention

MODEL_TYPE = "detr"
TASKS = ("detect",)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "picture network": ("model.backbone.", "model.encoder."),
    "box decoder": ("model.decoder.",),
}


class CanvasDetr(nn.Module):
    """pixel_values [B, 3, H, W] and pixel_mask [B, H, W] → logits [B, Q, C], pred_boxes [B, Q, 4].

    What lies outside the mask is seen by no layer, so a picture on a canvas gives what it gives alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.classes, self.boxes = model.class_labels_classifier, model.bbox_predictor
        self.padding = mask_of(self.model.backbone.model)

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        pixels, model = feeds["pixel_values"], self.model
        self.padding.mask = feeds["pixel_mask"]
        maps = model.backbone.model(pixels)
        features = (maps.feature_maps if hasattr(maps, "feature_maps") else maps)[-1]
        mask = self.padding.at(features)
        self.padding.mask = None
        bias = (mask.flatten(2)[:, :, None] - 1) * (torch.finfo(pixels.dtype).max / 2)
        places = self.positions(features, mask[:, 0]).to(pixels.dtype)
        states = model.input_projection(features).flatten(2).transpose(1, 2)
        for layer in model.encoder.layers:
            states = layer(states, bias, spatial_position_embeddings=places)
        names = model.query_position_embeddings.weight[None].expand(pixels.shape[0], -1, -1)
        queries = torch.zeros_like(names)
        for layer in model.decoder.layers:
            queries = layer(queries, None, places, names, states, encoder_attention_mask=bias)
        found = model.decoder.layernorm(queries)
        return self.classes(found), self.boxes(found).sigmoid()

    def positions(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Position embeddings [B, H' · W', d] of a grid whose real part is where `mask` [B, H', W'] is 1."""
        embedding = self.model.position_embedding
        if hasattr(embedding, "row_embeddings"):
            # From the tables: versions of transformers give what the module makes of them in different layouts.
            height, width = features.shape[-2:]
            columns = embedding.column_embeddings.weight[:width].expand(height, -1, -1)
            rows = embedding.row_embeddings.weight[:height, None].expand(-1, width, -1)
            return torch.cat([columns, rows], -1).flatten(0, 1)[None]
        # In fp32 whatever the weights are: fp16 has too few digits for the angles.
        y, x = (_angles(mask.float(), axis, embedding) for axis in (1, 2))
        return torch.cat([y, x], -1).flatten(1, 2)


def _angles(mask: torch.Tensor, axis: int, embedding: Any) -> torch.Tensor:
    """Sines and cosines [B, H', W', d / 2] of the place along `axis`, as part of the real length."""
    count = embedding.num_position_features
    place = mask.cumsum(axis)
    if embedding.normalize:
        place = place / (place.amax(axis, keepdim=True) + 1e-6) * (embedding.scale or 2 * math.pi)
    steps = embedding.temperature ** (torch.arange(0, count, 2) / count)
    angles = place[..., None] / steps
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values, pixel_mask → logits, pred_boxes."""
    original, traced = load(DetrForObjectDetection, checkpoint)
    use_plain_attention(traced)
    fold_norms(traced)
    spec = detector_spec(checkpoint, canvas=True)
    height, width = size_px(spec)

    def make(sizes: Sizes, rng: torch.Generator) -> Feeds:
        masks = torch.zeros(sizes["batch"], height, width, dtype=torch.int64)
        for mask in masks:
            mask[: _edge(height, rng), : _edge(width, rng)] = 1
        return {"pixel_mask": masks}

    graph = GraphPlan(
        role="model",
        module=CanvasDetr(traced),
        inputs=(
            Port("pixel_values", torch.float32, ("batch", 3, height, width)),
            Port("pixel_mask", torch.int64, ("batch", height, width)),
        ),
        outputs=outputs(traced.config.num_queries, traced.config.num_labels + 1),
        ranges={"batch": BATCH},
        trace={"batch": 2},
        checks=({"batch": 1}, {"batch": 3}),
        make=make,
        float_modules=("model.decoder", "classes", "boxes"),
    )
    return detector_plan(checkpoint, MODEL_TYPE, Detector(original, graph, spec, "softmax"))


def _edge(longest: int, rng: torch.Generator) -> int:
    return int(torch.randint(longest // 2, longest + 1, (), generator=rng))
