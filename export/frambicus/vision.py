"""The vision tower, and its grids as tokens that know where and when they were seen."""

from __future__ import annotations

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
    """Grids [B, F, C, h, w] → tokens [B, F · cells, width], all grids of a frame one after the other.

    Place is a function of the cell's centre and time one of seconds before the newest frame, so that neither depends
    on the picture's size, the number of frames or the clock. A hidden cell is a learned token with place and time.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in channels)
        self.levels = nn.Parameter(torch.zeros(len(channels), width))
        self.hidden = nn.Parameter(torch.zeros(width))
        self.place = nn.Linear(4 * _PLACE_BANDS, width)
        self.time = nn.Linear(2 * _TIME_BANDS, width)

    def forward(
        self, grids: Grids, times_s: torch.Tensor | None = None, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """times_s [B, F], the newest at 0; `hidden` bool [B, F, h, w] in cells of the last grid."""
        levels = [self._level(i, grid, hidden) for i, grid in enumerate(grids)]
        tokens = torch.cat(levels, dim=2)
        if times_s is not None:
            tokens = tokens + self.when(times_s).to(tokens.dtype)[:, :, None]
        return tokens.flatten(1, 2)

    def _level(self, i: int, grid: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        height, width = grid.shape[-2:]
        tokens = self.norms[i](self.projections[i](grid.flatten(3).transpose(2, 3)))
        if hidden is not None:
            scale = height // hidden.shape[-2]
            cells = hidden.repeat_interleave(scale, -2).repeat_interleave(scale, -1).flatten(2)
            tokens = torch.where(cells[..., None], self.hidden.to(tokens.dtype), tokens)
        where = self.where(height, width, grid.device).to(tokens.dtype)
        return tokens + where + self.levels[i]

    def where(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """The embeddings [height · width, width] of a grid's places."""
        y: torch.Tensor = self.place(places(height, width, device).to(self.place.weight.dtype))
        return y

    def when(self, times_s: torch.Tensor) -> torch.Tensor:
        """The embeddings [B, F, width] of times in seconds."""
        y: torch.Tensor = self.time(fourier(times_s, _TIME_BANDS, _LONGEST_S).to(self.time.weight.dtype))
        return y


def cells_of(frame_mask: torch.Tensor, grids: Grids) -> torch.Tensor:
    """The mask [B, F · cells] of `GridTokens`' tokens, of a mask [B, F] of frames."""
    count = sum(grid.shape[-2] * grid.shape[-1] for grid in grids)
    return frame_mask[:, :, None].expand(-1, -1, count).flatten(1)
