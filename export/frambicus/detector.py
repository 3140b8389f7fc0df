"""Objects as a set of boxes (DETR, arXiv 2005.12872); every cell of the grid is a query (OWL-ViT, arXiv 2205.06230).

A query starts at its cell with what the cell shows, attends to all others, and says what is there and where its box
is: DETR's free queries need hundreds of epochs to find out where to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from edgemm.export.frambicus.attention import Attention, FeedForward
from edgemm.export.frambicus.vision import Grids, GridTokens

BANDS, WIDEST = 6, 2.0
_FIRST_SIZE = 0.3
_SURE = 10.0

Target = Mapping[str, torch.Tensor]
"""`class_labels` int64 [n] and `boxes` [n, 4], centre x, centre y, width, height in 0…1 of the picture."""


@dataclass(frozen=True)
class Found:
    """What each query says: logits [B, Q, labels + 1], boxes [B, Q, 4] as in `Target`, states [B, Q, D].

    `layers` are the logits and boxes of every layer, the last one last, each with one axis more in front.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    states: torch.Tensor
    layers: tuple[torch.Tensor, torch.Tensor]

    def of(self, rows: torch.Tensor) -> Found:
        """Some of the pictures."""
        layers = self.layers[0][:, rows], self.layers[1][:, rows]
        return Found(self.logits[rows], self.boxes[rows], self.states[rows], layers)

    def corrected(self, targets: Mapping[int, Target], cells: tuple[int, int]) -> Found:
        """As if the pictures that `targets` has had been seen rightly: each object is found by the query of its cell.

        `cells` are the grid's rows and columns. Words can be learned over what is there before it is found (teacher
        forcing); the states stay what they are.
        """
        logits, boxes = self.logits.detach().clone(), self.boxes.detach().clone()
        centres = _cell_centres(*cells, boxes.device)
        for picture, target in targets.items():
            logits[picture] = 0.0
            logits[picture, :, -1] = _SURE
            free = torch.ones(len(centres), dtype=torch.bool, device=boxes.device)
            for label, box in zip(target["class_labels"], target["boxes"].to(boxes), strict=True):
                distance = (centres - box[:2]).square().sum(-1)
                query = distance.masked_fill(~free, torch.inf).argmin()
                free[query] = False
                logits[picture, query, -1] = 0.0
                logits[picture, query, label] = _SURE
                boxes[picture, query] = box
        return Found(logits, boxes, self.states, self.layers)


class DetectorLayer(nn.Module):
    """Queries attend to each other, then a feed-forward."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        detector = config.detector_config
        self.norms = nn.ModuleList(nn.LayerNorm(detector.width) for _ in range(2))
        self.own = Attention(config, detector.width, detector.heads)
        self.inner = FeedForward(detector.width, detector.inner)

    def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """x [B, Q, D], place [Q, D] → [B, Q, D]."""
        x = x + self.own(self.norms[0](x) + place)
        y: torch.Tensor = x + self.inner(self.norms[1](x))
        return y


class Detector(nn.Module):
    """Grids of one frame → `Found`.

    It projects the grids itself: detection can be trained without moving what the decoder sees.
    """

    def __init__(self, config: Any, channels: tuple[int, ...], scales: tuple[int, ...]) -> None:
        super().__init__()
        detector = config.detector_config
        self.detector_config = detector
        self.tokens = GridTokens(channels, scales, detector.width)
        self.layers = nn.ModuleList(DetectorLayer(config) for _ in range(detector.decoder_layers))
        self.norm = nn.LayerNorm(detector.width)
        self.class_head = nn.Linear(detector.width, len(detector.id2label) + 1)
        self.box_head = nn.Sequential(
            nn.Linear(detector.width, detector.width), nn.ReLU(), nn.Linear(detector.width, 4)
        )

    def forward(self, grids: Grids) -> Found:
        """grids [B, C, h, w] of one frame each."""
        return self.search(self.tokens([grid[:, None] for grid in grids]), grids[-1].shape[-2], grids[-1].shape[-1])

    def search(self, x: torch.Tensor, height: int, width: int) -> Found:
        """Tokens [B, height · width, D] of the cells of one frame each, with their places."""
        place = self.tokens.where(height, width, x.device).to(x.dtype)
        first = _cell_boxes(height, width, x.device)
        logits, boxes = [], []
        for layer in self.layers:
            x = layer(x, place)
            seen = self.norm(x)
            boxes.append((first + self.box_head(seen).float()).sigmoid())
            logits.append(self.class_head(seen))
        return Found(logits[-1], boxes[-1], seen, (torch.stack(logits), torch.stack(boxes)))

    def loss(self, found: Found, targets: Sequence[Target]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """DETR's loss and its parts, by transformers' own matching."""
        logits, boxes = (values.float() for values in found.layers)
        total, parts, _ = ForObjectDetectionLoss(
            logits[-1], list(targets), logits.device, boxes[-1], self.detector_config, logits, boxes
        )
        return total, parts


def _cell_boxes(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Boxes [h · w, 4] of one size in the middles of the cells, row by row, before the sigmoid."""
    centres = _cell_centres(height, width, device)
    return torch.logit(torch.cat((centres, torch.full_like(centres, _FIRST_SIZE)), dim=-1))


def _cell_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """x and y of the middles of the cells, row by row, [h · w, 2]."""
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)
