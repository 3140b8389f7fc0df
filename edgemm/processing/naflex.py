"""SigLIP 2's NaFlex (Tschannen et al., arXiv 2502.14786): a picture at its own aspect, as a bounded number of patches.

Twin of transformers' `Siglip2ImageProcessor`. The model's square table of positions is resized to the picture's grid of
patches; since that is linear, the host computes its weights and the graph multiplies them with the table.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import NaFlexSpec
from edgemm.processing.image import normalize, to_rgb
from edgemm.processing.resample import resize

_EPS = 1e-5
_LARGEST = 100.0


@lru_cache(maxsize=1024)
def size_for(height: int, width: int, patch_px: int, max_patches: int) -> tuple[int, int]:
    """The largest size in whole patches, of nearly the same aspect, that has at most `max_patches`."""

    def scaled(edge: int, scale: float) -> int:
        return max(patch_px, math.ceil(edge * scale / patch_px) * patch_px)

    low, high = _EPS / 10, _LARGEST
    while high - low >= _EPS:
        scale = (low + high) / 2
        if (scaled(height, scale) / patch_px) * (scaled(width, scale) / patch_px) <= max_patches:
            low = scale
        else:
            high = scale
    return scaled(height, low), scaled(width, low)


@lru_cache(maxsize=256)
def resize_weights(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Antialiased linear interpolation of one axis: `[size_out, size_in]`, rows sum to 1."""
    scale = size_in / size_out
    support = max(scale, 1.0)
    centres = (np.arange(size_out)[:, None] + 0.5) * scale
    taps = np.arange(size_in)[None]
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), size_in)
    weights = np.maximum(1.0 - np.abs((taps + 0.5 - centres) / support), 0.0) * ((taps >= first) & (taps < last))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


@lru_cache(maxsize=64)
def position_weights(rows: int, columns: int, grid: int) -> NDArray[np.float32]:
    """What each place of the table counts for each patch, `[rows · columns, grid²]`."""
    weights = np.kron(resize_weights(grid, rows), resize_weights(grid, columns))
    return np.asarray(weights, np.float32)


def naflex(image: object, spec: NaFlexSpec) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    """One picture (anything that `to_rgb` takes) → the inputs of a NaFlex tower.

    `pixel_values` float32 `[1, T, patch_px² · 3]`, `pixel_mask` int64 `[1, T]` and `aux.position_weights` float32
    `[1, T, grid²]` with T = `max_patches`.
    """
    picture = to_rgb(image)
    patch = spec.patch_px
    height, width = size_for(*picture.shape[:2], patch, spec.max_patches)
    values = normalize([resize(picture, (height, width), spec.resample)], spec)[0]
    rows, columns = height // patch, width // patch
    patches = values.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    pixel_values = np.zeros((1, spec.max_patches, patches.shape[1]), np.float32)
    positions = np.zeros((1, spec.max_patches, spec.grid**2), np.float32)
    mask = np.zeros((1, spec.max_patches), np.int64)
    count = len(patches)
    pixel_values[0, :count], positions[0, :count], mask[0, :count] = (
        patches,
        position_weights(rows, columns, spec.grid),
        1,
    )
    return {"pixel_values": pixel_values, "pixel_mask": mask, "aux.position_weights": positions}
