"""LLaVA-OneVision: pictures of any resolution as tiles, and the tiles' features as one map again.

Twin of transformers' `LlavaOnevisionImageProcessor` and of `LlavaOnevisionModel.pack_image_features`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import AnyresSpec
from edgemm.processing.resample import Pixels, resize

Size = tuple[int, int]

# Above this ratio of edges a map of features is shrunk: the original's constant.
_TOO_LARGE = 1.1


@dataclass(frozen=True, eq=False)
class Cut:
    """`tiles`: the whole picture first, then `rows · cols` parts of it; none where `rows == cols == 0`."""

    tiles: tuple[Pixels, ...]
    rows: int
    cols: int


def best_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """Of the pinpoints (height, width) the one that keeps most of a picture of `size`, then wastes least."""
    height, width = size

    def merit(point: Size) -> Size:
        scale = min(point[1] / width, point[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - point[0] * point[1]

    return max(pinpoints, key=merit)


def _fitted(size: Size, target: Size) -> Size:
    down, across = target[0] / size[0], target[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), target[0]), target[1]
    return target[0], min(math.ceil(size[1] * down), target[1])


def cut(image: Pixels, spec: AnyresSpec) -> Cut:
    """One picture `[H, W, 3]` uint8 → squares of `tile_px`."""
    edge, size = spec.tile_px, (image.shape[0], image.shape[1])
    target = best_pinpoint(size, spec.pinpoints)
    fitted = _fitted(size, target)
    canvas = np.zeros((*target, 3), np.uint8)
    top, left = (target[0] - fitted[0]) // 2, (target[1] - fitted[1]) // 2
    canvas[top : top + fitted[0], left : left + fitted[1]] = resize(image, fitted, spec.resample)
    rows, cols = target[0] // edge, target[1] // edge
    parts = [
        canvas[row * edge : (row + 1) * edge, col * edge : (col + 1) * edge]
        for row in range(rows)
        for col in range(cols)
    ]
    return Cut((resize(image, (edge, edge), spec.resample), *parts), rows, cols)


def squared(image: Pixels, fill: tuple[int, int, int]) -> Pixels:
    """The picture in the middle of a square of its longer edge, filled with the colour `fill` (RGB)."""
    height, width = image.shape[:2]
    if height == width:
        return image
    edge = max(height, width)
    canvas = np.empty((edge, edge, 3), np.uint8)
    canvas[:] = fill
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas[top : top + height, left : left + width] = image
    return canvas


def whole(image: Pixels, spec: AnyresSpec) -> Cut:
    """One of several pictures: not cut, only squared."""
    square = squared(image, spec.square_fill)
    return Cut((resize(square, (spec.tile_px, spec.tile_px), spec.resample),), 0, 0)


def map_size(size: Size, rows: int, cols: int, spec: AnyresSpec) -> tuple[Size, Size]:
    """(rows, columns) of the features of a picture of `size` (height, width): without its black edges, and shrunk.

    The second equals the first where nothing shrinks.
    """
    height, width = rows * spec.side, cols * spec.side
    if size[1] / size[0] > width / height:
        height -= 2 * ((height - int(round(size[0] * (width / size[1]), 7))) // 2)
    else:
        width -= 2 * ((width - int(round(size[1] * (height / size[0]), 7))) // 2)
    ratio = math.sqrt(height * width / (spec.max_tiles * spec.side**2))
    if ratio > _TOO_LARGE:
        return (height, width), (int(height // ratio), int(width // ratio))
    return (height, width), (height, width)


def token_count(size: Size, rows: int, cols: int, spec: AnyresSpec) -> int:
    """How many tokens stand for a picture of `size` that was cut into `rows · cols` tiles (0 · 0: not cut)."""
    if not rows:
        return spec.side**2 + 1
    height, width = map_size(size, rows, cols, spec)[1]
    return spec.side**2 + height * (width + 1)


def pack(
    features: NDArray[Any], newline: NDArray[Any], size: Size, rows: int, cols: int, spec: AnyresSpec
) -> NDArray[np.float32]:
    """Features of one picture's tiles → what stands for it, float32 `[token_count, hidden]`.

    features `[1 + rows · cols, side², hidden]`, the whole picture first; newline `[hidden]` ends every row of the map.
    """
    features, newline = features.astype(np.float32), newline.astype(np.float32)
    if not rows:
        return np.concatenate([features[0], newline[None]])
    side, hidden = spec.side, features.shape[2]
    map_ = features[1:].reshape(rows, cols, side, side, hidden).transpose(0, 2, 1, 3, 4)
    map_ = map_.reshape(rows * side, cols * side, hidden)
    seen, shrunk = map_size(size, rows, cols, spec)
    top, left = (map_.shape[0] - seen[0]) // 2, (map_.shape[1] - seen[1]) // 2
    map_ = map_[top : top + seen[0], left : left + seen[1]]
    if shrunk != seen:
        map_ = bilinear(map_, shrunk)
    ends = np.broadcast_to(newline, (map_.shape[0], 1, hidden))
    return np.concatenate([features[0], np.concatenate([map_, ends], axis=1).reshape(-1, hidden)])


def bilinear(values: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """`[H, W, D]` at `size` (rows, columns): torch's `interpolate(mode="bilinear")`, which does not smooth first."""
    for axis in (0, 1):
        length = values.shape[axis]
        low, high, share = _neighbours(length, size[axis])
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        share = share.reshape(shape)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def _neighbours(length: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    scale = np.float32(length) / np.float32(wanted)
    places = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)
