"""Objects as a set of boxes (DETR, arXiv 2005.12872), with a box as each query's starting point (DAB-DETR, 2201.12329).

The queries start on a lattice over the picture and every layer moves them: DETR's free queries need hundreds of epochs
to find out where to look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from edgemm.export.frambicus.attention import Attention, FeedForward, fourier
from edgemm.export.frambicus.vision import Grids, GridTokens

_BANDS, _WIDEST = 6, 2.0
_FIRST_SIZE = 0.3

Target = Mapping[str, torch.Tensor]
"""`class_labels` int64 [n] and `boxes` [n, 4], centre x, centre y, width, height in 0…1 of the picture."""


def lattice(queries: int) -> torch.Tensor:
    """Boxes [queries, 4] of one size, their centres row by row over the picture, before the sigmoid."""
    side = math.ceil(math.sqrt(queries))
    centres = (torch.arange(queries)[:, None] // torch.tensor([1, side]) % side + 0.5) / side
    boxes = torch.cat((centres, torch.full((queries, 2), _FIRST_SIZE)), dim=1)
    return torch.logit(boxes)


class DetectorLayer(nn.Module):
    """Queries attend to each other, then to the grid, then a feed-forward."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        detector = config.detector_config
        self.norms = nn.ModuleList(nn.LayerNorm(detector.width) for _ in range(3))
        self.own = Attention(config, detector.width, detector.heads)
        self.cross = Attention(config, detector.width, detector.heads)
        self.inner = FeedForward(detector.width, detector.inner)

    def forward(self, x: torch.Tensor, place: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """x and place [B, Q, D], tokens [B, T, D] → [B, Q, D]."""
        x = x + self.own(self.norms[0](x) + place)
        x = x + self.cross(self.norms[1](x) + place, tokens)
        y: torch.Tensor = x + self.inner(self.norms[2](x))
        return y


class Detector(nn.Module):
    """Grids of one frame → class logits [B, Q, labels + 1] and boxes [B, Q, 4] of every layer, the last one last.

    It projects the grids itself: detection can be trained without moving what the decoder sees.
    """

    def __init__(self, config: Any, channels: tuple[int, ...]) -> None:
        super().__init__()
        detector = config.detector_config
        self.detector_config = detector
        self.tokens = GridTokens(channels, detector.width)
        self.content = nn.Parameter(torch.zeros(detector.queries, detector.width))
        self.boxes = nn.Parameter(torch.zeros(detector.queries, 4))
        self.place = nn.Linear(8 * _BANDS, detector.width)
        self.layers = nn.ModuleList(DetectorLayer(config) for _ in range(detector.decoder_layers))
        self.norm = nn.LayerNorm(detector.width)
        self.class_head = nn.Linear(detector.width, len(detector.id2label) + 1)
        self.box_head = nn.Sequential(
            nn.Linear(detector.width, detector.width), nn.ReLU(), nn.Linear(detector.width, 4)
        )

    def draw(self) -> None:
        """The queries' boxes on their lattice."""
        init.copy_(self.boxes, lattice(len(self.boxes)).to(self.boxes))

    def forward(self, grids: Grids) -> tuple[torch.Tensor, torch.Tensor]:
        """grids [B, C, h, w] → logits [layers, B, Q, labels + 1], boxes [layers, B, Q, 4] as in `Target`."""
        tokens = self.tokens([grid[:, None] for grid in grids])
        x = self.content.to(tokens.dtype).expand(len(tokens), -1, -1)
        boxes = self.boxes.to(tokens.dtype).expand(len(tokens), -1, -1)
        logits, moved = [], []
        for layer in self.layers:
            place = fourier(boxes.sigmoid(), _BANDS, _WIDEST).flatten(2).to(tokens.dtype)
            x = layer(x, self.place(place), tokens)
            seen = self.norm(x)
            boxes = boxes + self.box_head(seen)
            logits.append(self.class_head(seen))
            moved.append(boxes.sigmoid())
            boxes = boxes.detach()
        return torch.stack(logits), torch.stack(moved)

    def loss(
        self, logits: torch.Tensor, boxes: torch.Tensor, targets: Sequence[Target]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """DETR's loss and its parts, by transformers' own matching. `logits` and `boxes` as `forward` gives them."""
        total, parts, _ = ForObjectDetectionLoss(
            logits[-1], list(targets), logits.device, boxes[-1], self.detector_config, logits, boxes
        )
        return total, parts
