"""The vision tower, and its grids as tokens that know where and when they were seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgemm.export.families.efficientnet_lite0 import EfficientNetLite0
from edgemm.export.frambicus.attention import fourier

Grids = Sequence[torch.Tensor]
"""The tower's outputs of F frames, earlier blocks first: [B, F, channels, h, w] each."""

_PLACE_BANDS, _WIDEST = 6, 2.0
_TIME_BANDS, _LONGEST_S = 9, 64.0


class VisionTower(EfficientNetLite0):
    """EfficientNet-lite0 that shows its grids. It never trains its batch statistics: batches here are small."""

    def __init__(self, config: Any) -> None:
        super().__init__(len(config.id2label))
        self.kept = tuple(config.grid_blocks)
        self.channels = (*(self.blocks[i].project.conv.out_channels for i in self.kept), self.head.conv.out_channels)
        strides = [block.depthwise.conv.stride[0] for block in self.blocks]
        self.scales = (*(math.prod(strides[i + 1 :]) for i in self.kept), 1)

    def train(self, mode: bool = True) -> VisionTower:
        """Stays as in evaluation, whatever the rest of the model does."""
        super().train(False)
        return self

    def grids(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """pixel_values [N, 3, H, W] → the kept grids and the last one, [N, channels, h, w] each."""
        x = self.stem(pixel_values)
        kept = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.kept:
                kept[i] = x
        return [*(kept[i] for i in self.kept), self.head(x)]

    def cell_probabilities(self, grid: torch.Tensor) -> torch.Tensor:
        """The last grid [N, C, h, w] → class probabilities [N, h·w + 1, classes]: of every cell, then of the picture.

        The classifier stands on a mean over cells and is linear, so a cell has logits of its own (class activation
        maps, arXiv 1512.04150): a small object that the mean drowns is found in its cell.
        """
        cells = grid.flatten(2).transpose(1, 2)
        logits = self.classifier(torch.cat((cells, cells.mean(1, keepdim=True)), dim=1))
        return logits.float().softmax(-1)


def places(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines of the centres of a grid's cells, row by row: [height · width, 4 · bands]."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    rows, columns = fourier(y, _PLACE_BANDS, _WIDEST), fourier(x, _PLACE_BANDS, _WIDEST)
    rows = rows[:, None].expand(-1, width, -1)
    columns = columns[None].expand(height, -1, -1)
    return torch.cat((columns, rows), dim=-1).flatten(0, 1)


class GridTokens(nn.Module):
    """Grids [B, F, C, h, w] → tokens [B, F · cells, width], one for each cell of the last grid.

    A finer grid's features of a cell stand beside the last grid's: fewer tokens than one for each cell of each grid,
    and nothing lost. Place is a function of the cell's centre and time one of seconds before the newest frame, so that
    neither depends on the picture's size, the number of frames or the clock. A hidden cell is a learned token with
    place and time.
    """

    def __init__(self, channels: Sequence[int], scales: Sequence[int], width: int) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.sizes = tuple(c * scale**2 for c, scale in zip(channels, scales, strict=True))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in self.sizes)
        self.projection = nn.Linear(sum(self.sizes), width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.place = nn.Linear(4 * _PLACE_BANDS, width)
        self.time = nn.Linear(2 * _TIME_BANDS, width)

    def forward(
        self, grids: Grids, times_s: torch.Tensor | None = None, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """times_s [B, F], the newest at 0; `hidden` bool [B, F, h, w] in cells of the last grid."""
        batch, frames, _, height, width = grids[-1].shape
        tokens = self.project(cells_in(grids, self.scales)).unflatten(0, (batch, frames))
        if hidden is not None:
            tokens = torch.where(hidden.flatten(2)[..., None], self.hidden.to(tokens.dtype), tokens)
        tokens = tokens + self.where(height, width, tokens.device).to(tokens.dtype)
        if times_s is not None:
            tokens = tokens + self.when(times_s).to(tokens.dtype)[:, :, None]
        return tokens.flatten(1, 2)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N, cells, sum of `sizes`], as `cells_in` gives them → [N, cells, width], without place and time."""
        parts = zip(self.norms, features.split(self.sizes, dim=-1), strict=True)
        y: torch.Tensor = self.norm(self.projection(torch.cat([norm(part) for norm, part in parts], dim=-1)))
        return y

    def where(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """The embeddings [height · width, width] of a grid's places."""
        y: torch.Tensor = self.place(places(height, width, device).to(self.place.weight.dtype))
        return y

    def when(self, times_s: torch.Tensor) -> torch.Tensor:
        """The embeddings [B, F, width] of times in seconds."""
        y: torch.Tensor = self.time(fourier(times_s, _TIME_BANDS, _LONGEST_S).to(self.time.weight.dtype))
        return y


def cells_in(grids: Grids, scales: Sequence[int]) -> torch.Tensor:
    """What the grids show of each cell of the last one, [B · F, h · w, features]; a finer grid is folded into it."""
    folded = [nn.functional.pixel_unshuffle(g.flatten(0, 1), scale) for g, scale in zip(grids, scales, strict=True)]
    return torch.cat([f.flatten(2).transpose(1, 2) for f in folded], dim=-1)


def cells_of(frame_mask: torch.Tensor, grids: Grids) -> torch.Tensor:
    """The mask [B, F · cells] of `GridTokens`' tokens, of a mask [B, F] of frames."""
    count = grids[-1].shape[-2] * grids[-1].shape[-1]
    return frame_mask[:, :, None].expand(-1, -1, count).flatten(1)
