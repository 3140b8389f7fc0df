"""YOLOS: a picture → objects, a plain vision transformer with tokens that find them (Fang et al., arXiv 2106.00666).

Its positions are a table that is stretched over whatever the picture's size is. The stretching is two small
matrices, which the host makes (`aux.rows`, `aux.cols`), so the graph takes every size and resizes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import YolosForObjectDetection

from edgemm.bundle.spec import EdgesSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.detectors import Detector, detector_plan, detector_spec, load, outputs
from edgemm.export.graph import Feeds, GraphPlan, Port, Sizes
from edgemm.export.model_plan import ModelPlan
from edgemm.export.plans import BATCH
from edgemm.export.tracing import use_plain_attention
from edgemm.processing.edges import bicubic_weights

MODEL_TYPE = "yolos"
TASKS = ("detect",)
NEEDS: Mapping[str, tuple[str, ...]] = {"picture network": ("vit.embeddings.", "vit.encoder.")}


class AnySizeYolos(nn.Module):
    """pixel_values [B, 3, H, W], aux.rows [H', h], aux.cols [W', w] → logits [B, Q, C], pred_boxes [B, Q, 4].

    H' × W' are the picture's patches, h × w the table's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vit, config = model.vit, model.config
        self.classes, self.boxes = model.class_labels_classifier, model.bbox_predictor
        self.tokens, self.grid = config.num_detection_tokens, _grid(config)
        # Of the encoder or of its interpolation, by the version of transformers.
        tables = model.vit.encoder.named_parameters()
        self.middle = next((t for name, t in tables if name.endswith("mid_position_embeddings")), None)

    def forward(self, feeds: Feeds) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        pixels, embeddings = feeds["pixel_values"], self.vit.embeddings
        patches = embeddings.patch_embeddings(pixels)
        batch = pixels.shape[0]
        first, last = (t.expand(batch, -1, -1) for t in (embeddings.cls_token, embeddings.detection_tokens))
        states = torch.cat([first, patches, last], 1) + self.stretched(embeddings.position_embeddings, feeds)
        middle = [] if self.middle is None else self.middle[:, 0]
        for i, layer in enumerate(self.vit.encoder.layer):
            states = layer(states)
            if i < len(middle):
                states = states + self.stretched(middle[i : i + 1], feeds)
        found = self.vit.layernorm(states)[:, -self.tokens :]
        return self.classes(found), self.boxes(found).sigmoid()

    def stretched(self, table: torch.Tensor, feeds: Feeds) -> torch.Tensor:
        """A table [1, 1 + h · w + Q, D] of positions → [1, 1 + H' · W' + Q, D]."""
        # Plain products of two matrices: OpenVINO 2026.4 fails on broadcast ones here.
        (height, width), hidden = self.grid, table.shape[-1]
        tall = torch.matmul(feeds["aux.rows"], table[0, 1 : -self.tokens].reshape(height, width * hidden))
        sides = tall.unflatten(1, (width, hidden)).transpose(0, 1).flatten(1)
        wide = torch.matmul(feeds["aux.cols"], sides).unflatten(1, (-1, hidden)).transpose(0, 1)
        return torch.cat([table[:, :1], wide.flatten(0, 1)[None], table[:, -self.tokens :]], 1)


def _grid(config: Any) -> tuple[int, int]:
    return config.image_size[0] // config.patch_size, config.image_size[1] // config.patch_size


def plan(checkpoint: Checkpoint) -> ModelPlan:
    """One graph: pixel_values, aux.rows, aux.cols → logits, pred_boxes."""
    original, traced = load(YolosForObjectDetection, checkpoint)
    use_plain_attention(traced)
    patch, (rows, cols) = traced.config.patch_size, _grid(traced.config)
    spec = detector_spec(checkpoint, multiple_px=patch, canvas=False)
    if not isinstance(spec, EdgesSpec):
        raise CheckpointError(f"{checkpoint.path} resizes to one size: expected shortest_edge and longest_edge")

    def make(sizes: Sizes, _: torch.Generator) -> Feeds:
        pairs = (("aux.rows", rows, sizes["rows"]), ("aux.cols", cols, sizes["cols"]))
        return {name: torch.from_numpy(bicubic_weights(n, m)) for name, n, m in pairs}

    def sizes(batch: int, down: int, right: int) -> Sizes:
        return {"batch": batch, "height": down * patch, "width": right * patch, "rows": down, "cols": right}

    most = spec.longest_edge // patch
    usual = min(most, (spec.shortest_edge or spec.longest_edge) // patch)
    ranges = {"rows": (1, usual, most), "cols": (1, usual, most)}
    edges = dict.fromkeys(("height", "width"), (patch, usual * patch, most * patch))
    graph = GraphPlan(
        role="model",
        module=AnySizeYolos(traced),
        inputs=(
            Port("pixel_values", torch.float32, ("batch", 3, "height", "width")),
            Port("aux.rows", torch.float32, ("rows", rows)),
            Port("aux.cols", torch.float32, ("cols", cols)),
        ),
        outputs=outputs(traced.config.num_detection_tokens, traced.config.num_labels + 1),
        ranges={"batch": BATCH} | edges | ranges,
        trace=sizes(2, 3, 5),
        checks=(sizes(1, 1, 2), sizes(3, 4, 2)),
        make=make,
        float_modules=("classes", "boxes"),
    )
    return detector_plan(checkpoint, MODEL_TYPE, Detector(original, graph, spec, "softmax"))
