"""When each token was said: the decoder's attention to the sound, aligned with it by dynamic time warping.

As transformers' `generate(return_token_timestamps=True)` does it, after Radford et al., arXiv 2212.04356, and
Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition" (1978).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 14


def token_times(weights: NDArray[Any], *, tokens: int, step_s: float, median_width: int) -> tuple[float, ...]:
    """Seconds at which each of `tokens` tokens ends, from the start of the sound.

    `weights` [heads, fed, positions] are what the decoder attended to when each token was fed to it, cut to the
    positions that hold sound, one every `step_s` seconds. A last token that was not fed ends where the one before it
    does.
    """
    fed = weights.shape[1]
    if not fed or not weights.shape[2]:
        return (0.0,) * tokens
    rows, columns = time_warping(-smoothed(weights, median_width).astype(np.float64))
    first = np.pad(np.diff(rows), (1, 0), constant_values=1).astype(bool)
    # Attention without any difference leaves the path on the edge, a step before the sound.
    times = np.maximum(columns[first] * step_s, 0.0).tolist()
    return tuple(times[:tokens]) + (times[-1],) * (tokens - len(times))


def smoothed(weights: NDArray[Any], median_width: int) -> NDArray[np.float32]:
    """Weights [heads, tokens, positions] without what all tokens share and without spikes; the mean of the heads."""
    values = weights.astype(np.float32)
    mean = values.mean(-2, keepdims=True, dtype=np.float64).astype(np.float32)
    deviation = values.std(-2, keepdims=True, dtype=np.float64).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (values - mean) / deviation
    total: NDArray[np.float32] = median_filter(values, median_width).mean(0)
    return total


def median_filter(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The median of `width` (odd) neighbours along the last axis, mirrored at its ends.

    Rows that are not longer than half the width come back as they are. What is no number counts as the largest.
    """
    half = width // 2
    if not half or values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    rows = np.where(np.isnan(padded), np.inf, padded).reshape(-1, padded.shape[-1])
    length = values.shape[-1]
    # In blocks that stay in the processor's cache.
    block = max(1, _BLOCK // length)
    medians = [_median(rows[i : i + block], width, length) for i in range(0, len(rows), block)]
    found: NDArray[np.float32] = np.concatenate(medians).reshape(values.shape)
    return np.where(np.isinf(found), np.float32(np.nan), found)


def _median(rows: NDArray[np.float32], width: int, length: int) -> NDArray[np.float32]:
    """Half of the shifted rows leave, the largest first; the largest of those that stay is the median."""
    lanes = [rows[:, shift : shift + length] for shift in range(width)]
    for _ in range(width // 2):
        largest = lanes[0]
        for i in range(1, len(lanes)):
            lanes[i - 1], largest = np.minimum(lanes[i], largest), np.maximum(lanes[i], largest)
        lanes.pop()
    found: NDArray[np.float32] = np.maximum.reduce(lanes)
    return found


def time_warping(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cheapest way through `cost` [rows, columns] from corner to corner, as the rows and the columns it passes.

    Each step moves on by a row, a column, or both; where none of the three is cheaper than both others, by a column.
    Sums are kept in fp32, one diagonal at a time: the cells of a diagonal do not depend on each other.
    """
    rows, columns = cost.shape
    by_both, by_row = np.zeros((2, rows + columns + 1, rows + 1), bool)
    diagonals = _diagonals(cost)
    before, last, now = np.full((3, rows + 1), np.inf, np.float32)
    before[0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        low, high = max(1, diagonal - columns), min(rows, diagonal - 1) + 1
        both, row, column = before[low - 1 : high - 1], last[low - 1 : high - 1], last[low:high]
        is_both = np.logical_and(both < row, both < column, out=by_both[diagonal, low:high])
        is_row = np.logical_and(row < both, row < column, out=by_row[diagonal, low:high])
        best = np.where(is_both, both, np.where(is_row, row, column))
        np.add(diagonals[diagonal - 2, low - 1 : high - 1], best, out=now[low:high], casting="same_kind")
        # Beside a diagonal lies nothing: not what the buffer held three diagonals ago.
        now[0] = now[high:] = np.inf
        before, last, now = last, now, before
    return _walk_back(by_both, by_row)


def _diagonals(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """cost [R, C] → [R + C - 1, R], whose row d holds cost[r, d - r] at r."""
    rows, columns = cost.shape
    sheared = np.zeros((rows, rows + columns), np.float64)
    sheared[:, :columns] = cost
    return np.ascontiguousarray(sheared.reshape(-1)[: rows * (rows + columns - 1)].reshape(rows, -1).T)


def _walk_back(by_both: NDArray[np.bool_], by_row: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    path: list[tuple[int, int]] = []
    row = by_both.shape[1] - 1
    column = by_both.shape[0] - 1 - row
    while row > 0 or column > 0:
        path.append((row - 1, column - 1))
        both = row > 0 and column > 0 and by_both[row + column, row]
        down = row > 0 and (column == 0 or by_row[row + column, row])
        row -= bool(both or down)
        column -= bool(both or not down)
    points = np.array(path[::-1], np.int64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def of_sentence(steps: Sequence[NDArray[Any]], rows: Sequence[int]) -> NDArray[Any]:
    """The alignment [heads, fed, positions] of one sentence.

    `steps` [B, heads, 1, positions] are those of every generated token, `rows` the row of each in its step.
    """
    picked = [step[row, :, 0] for step, row in zip(steps, rows, strict=True)]
    return np.stack(picked, axis=1) if picked else np.zeros((0, 0, 0), np.float32)
