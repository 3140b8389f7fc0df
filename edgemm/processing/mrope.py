"""M-RoPE: positions on three axes (time, row, column), counted on from picture to picture (Qwen2-VL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A run of placeholder tokens: `times` chunks of `rows` by `columns` tokens, `interval` apart on the time axis."""

    times: int
    rows: int
    columns: int
    interval: float = 1.0

    @property
    def tokens(self) -> int:
        return self.times * self.rows * self.columns

    def positions(self, start: int) -> Ids:
        """`[3, tokens]`, the first at `start` on every axis."""
        # In fp32 and cut, as the original does it.
        times = (np.arange(self.times, dtype=np.float32) * np.float32(self.interval)).astype(np.int64)
        axes = np.meshgrid(times, np.arange(self.rows), np.arange(self.columns), indexing="ij")
        return np.stack(axes).reshape(3, -1).astype(np.int64) + start


def mrope(ids: Sequence[int], blocks: Mapping[int, Sequence[Block]]) -> tuple[Ids, int]:
    """Positions `[3, 1, S]` of a prompt, and what to add to the length for the positions after it.

    `blocks` are the runs of each placeholder id, in order. Twin of transformers' `get_rope_index`.
    """
    waiting = {token: list(runs) for token, runs in blocks.items()}
    parts: list[Ids] = []
    at, position = 0, 0
    while at < len(ids):
        if waiting.get(ids[at]):
            block = waiting[ids[at]].pop(0)
            parts.append(block.positions(position))
            at, position = at + block.tokens, position + max(block.rows, block.columns)
            continue
        end = at + 1
        while end < len(ids) and not waiting.get(ids[end]):
            end += 1
        parts.append(np.tile(np.arange(position, position + end - at), (3, 1)))
        at, position = end, position + end - at
    positions = np.concatenate(parts, axis=1)
    return positions[:, None], int(positions.max()) + 1 - len(ids)
