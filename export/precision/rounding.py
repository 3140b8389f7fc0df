"""Rounding to symmetric int4 or int8: steps of least squared error, or such that inputs as they are seen lose least.

The second is GPTQ (Frantar et al., arXiv 2210.17323): input by input, what rounding its weights adds to the outputs is
taken back by the weights of the inputs that are still to come, as far as the inputs go together. It wants the second
moments XᵀX [K, K] of the inputs X [rows, K].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.export.precision.weights import BlockedWeight

RANGES = {4: (-8, 7), 8: (-127, 127)}
"""Bits → the least and the largest integer."""

BLOCKS = (32, 16)
"""Block sizes, the first that divides a matrix is taken. In four bits, and where examples tell, small ones pay."""

CLIPS = np.sort([*np.linspace(1.0, 0.55, 16), 7 / 8])[::-1]
"""Shares of the largest weight that are tried; 7/8 finds the step of four bits again where -8 is the largest."""

_DAMPING = 0.01  # of the mean moment: inputs that few examples moved are trusted less

Floats = NDArray[np.floating[Any]]


def block_of(rows: int) -> int | None:
    """The block size for a matrix of so many inputs; None where none divides them."""
    return next((b for b in BLOCKS if rows % b == 0), None)


def plain(weight: NDArray[np.float32], block: int, bits: int = 4) -> BlockedWeight:
    """Round `weight` [K, N] to the nearest, each block's step of least squared error."""
    rows, columns = weight.shape
    grouped = weight.reshape(rows // block, block, columns)
    scales = _scales(grouped, np.ones((rows // block, block)), bits)
    values = _rounded(grouped, scales[:, None], bits)
    return BlockedWeight(values.astype(np.int8).reshape(rows, columns), scales, block, bits)


def compensated(weight: NDArray[np.float32], factor: Floats, block: int, bits: int = 4) -> BlockedWeight:
    """Round `weight` [K, N] for inputs whose second moments have the `factor` [K, K]."""
    rows, columns = weight.shape
    left = weight.astype(np.float32, copy=True)
    importance = 1 / np.diag(factor) ** 2
    values = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // block, columns), np.float32)
    stride = min(block, BLOCKS[0])
    for start in range(0, rows, stride):
        inside, after = slice(start, start + stride), slice(start + stride, rows)
        if start % block == 0:
            whole = slice(start, start + block)
            step = scales[start // block] = _scales(left[None, whole], importance[None, whole], bits)[0]
        errors = _round_block(left[inside], step, factor[inside, inside], values[inside], bits)
        left[after] -= factor[inside, after].T @ errors
    return BlockedWeight(values, scales, block, bits)


def _round_block(
    left: NDArray[np.float32], step: NDArray[np.float32], factor: Floats, values: NDArray[np.int8], bits: int
) -> NDArray[np.float32]:
    """Round the rows of `left` into `values`, each one's error taken from the next; return the errors."""
    errors = np.empty_like(left)
    for i, row in enumerate(left):
        values[i] = nearest = _rounded(row, step, bits)
        errors[i] = (row - nearest * step) / factor[i, i]
        left[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return errors


def factor_of(moments: Floats) -> NDArray[np.float32]:
    """Upper Cholesky factor of the inverse of the damped moments [K, K]: most of the work, one for many matrices."""
    damped = moments.astype(np.float64)
    spare = _DAMPING * np.trace(damped) / len(damped)
    damped[np.diag_indices_from(damped)] += spare if spare > 0 else 1.0
    factor: NDArray[np.float32] = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return factor


def _scales(grouped: NDArray[np.float32], importance: Floats, bits: int) -> NDArray[np.float32]:
    """The step of each block [B, N] that loses least; `grouped` [B, size, N], `importance` of each input [B, size]."""
    peaks = np.abs(grouped).max(1)
    peaks = np.where(peaks == 0, 1.0, peaks).astype(np.float32)
    weights = importance[:, :, None].astype(np.float32)
    best = np.full(peaks.shape, np.inf, np.float32)
    highest = RANGES[bits][1]
    scales = (peaks / highest).astype(np.float32)
    for clip in CLIPS.astype(np.float32):
        tried: NDArray[np.float32] = (clip * peaks / highest).astype(np.float32)
        lost = (weights * (grouped - _rounded(grouped, tried[:, None], bits) * tried[:, None]) ** 2).sum(1)
        better = lost < best
        scales[better], best[better] = tried[better], lost[better]
    return scales


def _rounded(values: NDArray[np.float32], step: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = np.clip(np.rint(values / step), *RANGES[bits])
    return rounded
