"""Qwen's pictures and videos: patches in the order of the tokens that they become, and their tower's other inputs.

Twin of transformers' `Qwen2VLImageProcessor` and of what its towers compute from the grid: the angles of the rotary
embedding, the windows of Qwen2.5-VL, the interpolated positions of Qwen3-VL. A chunk is one picture, or the
`temporal_patch` frames of a video that the tower sees as one; attention never leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import PatchesSpec
from edgemm.errors import InputError
from edgemm.processing.image import normalize, to_rgb
from edgemm.processing.resample import Pixels, resize

Feeds = dict[str, NDArray[Any]]

_MOST_ASPECT = 200
_UNSEEN = -1e4  # an additive mask that also fits fp16


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of one picture or video: `pixel_values` of each, and their grid in patches."""

    pixel_values: tuple[NDArray[np.float32], ...]
    rows: int
    columns: int

    def tokens(self, spec: PatchesSpec) -> int:
        """Tokens that one chunk becomes."""
        return self.rows * self.columns // spec.merge**2


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > _MOST_ASPECT * min(height, width):
        raise InputError(
            f"a picture of {width} x {height} px is too narrow: expected an aspect of at most {_MOST_ASPECT}",
            hint="cut it",
        )


def picture_size(height: int, width: int, factor: int, pixels: tuple[int, int]) -> tuple[int, int]:
    """The size in multiples of `factor` of nearly the same aspect, with `pixels` (at least, at most) in all.

    Raises InputError for an edge over 200 times the other.
    """
    _check_aspect(height, width)
    least, most = pixels
    size = round(height / factor) * factor, round(width / factor) * factor
    if size[0] * size[1] > most:
        scale = math.sqrt(height * width / most)
        return (
            max(factor, math.floor(height / scale / factor) * factor),
            max(factor, math.floor(width / scale / factor) * factor),
        )
    if size[0] * size[1] < least:
        scale = math.sqrt(least / (height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return size


def clip_size(frames: int, height: int, width: int, spec: PatchesSpec) -> tuple[int, int]:
    """The size of a video's frames where `video_*_pixels` count the whole clip (Qwen3-VL)."""
    factor, pair = spec.patch_px * spec.merge, spec.temporal_patch
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    size = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / pair) * pair * size[0] * size[1]
    if total > spec.video_max_pixels:
        scale = math.sqrt(frames * height * width / spec.video_max_pixels)
        return (
            max(factor, math.floor(height / scale / factor) * factor),
            max(factor, math.floor(width / scale / factor) * factor),
        )
    if total < spec.video_min_pixels:
        scale = math.sqrt(spec.video_min_pixels / (frames * height * width))
        return math.ceil(height * scale / factor) * factor, math.ceil(width * scale / factor) * factor
    return size


def _patchify(frames: Sequence[Pixels], spec: PatchesSpec) -> NDArray[np.float32]:
    """`temporal_patch` frames of one size → `[patches, 3 · temporal_patch · patch_px²]`, block by block."""
    values = normalize(frames, spec)
    patch, merge = spec.patch_px, spec.merge
    rows, columns = values.shape[2] // patch, values.shape[3] // patch
    grid = values.reshape(len(frames), 3, rows // merge, merge, patch, columns // merge, merge, patch)
    flat = grid.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)
    return np.ascontiguousarray(flat, np.float32)


def picture_chunks(image: object, spec: PatchesSpec) -> Chunks:
    """One picture (anything that `to_rgb` takes): a chunk in which it stands still."""
    picture = to_rgb(image)
    limits = (spec.min_pixels, spec.max_pixels)
    size = picture_size(picture.shape[0], picture.shape[1], spec.patch_px * spec.merge, limits)
    frame = resize(picture, size, spec.resample)
    values = _patchify([frame], PatchesSpec(**{**spec.model_dump(), "temporal_patch": 1}))
    # The patch of a standing picture is the same in every frame: channel, frame, row, column.
    still = np.repeat(values.reshape(len(values), 3, 1, -1), spec.temporal_patch, axis=2)
    return Chunks((still.reshape(len(values), -1),), size[0] // spec.patch_px, size[1] // spec.patch_px)


def video_chunks(frames: Any, spec: PatchesSpec) -> Chunks:
    """Frames uint8 `[T, H, W, 3]`: one chunk every `temporal_patch` frames, the last frame repeated to fill it."""
    pictures = [to_rgb(frame) for frame in frames]
    if not pictures:
        raise InputError("the video has no frames: expected at least one")
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError("the frames of a video differ in size: expected [T, H, W, 3]")
    height, width = pictures[0].shape[:2]
    pictures += pictures[-1:] * (-len(pictures) % spec.temporal_patch)
    if spec.video_budget == "clip":
        size = clip_size(len(pictures), height, width, spec)
    else:
        limits = (spec.video_min_pixels, spec.video_max_pixels)
        size = picture_size(height, width, spec.patch_px * spec.merge, limits)
    scaled = [resize(picture, size, spec.resample) for picture in pictures]
    step = spec.temporal_patch
    values = tuple(_patchify(scaled[i : i + step], spec) for i in range(0, len(scaled), step))
    return Chunks(values, size[0] // spec.patch_px, size[1] // spec.patch_px)


def _places(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """Row and column `[patches, 2]` of every patch, block by block of `merge` squared."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks.reshape(-1, 2), np.int64)


def _rotary(places: NDArray[np.int64], spec: PatchesSpec) -> Feeds:
    """Cosine and sine `[patches, rotary_dim]`: rows turn one quarter of the channels, columns the next, then again."""
    half = spec.rotary_dim // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1.0) / np.float32(spec.rotary_theta) ** exponents
    angles = (places.astype(np.float32)[:, :, None] * frequencies).reshape(len(places), -1)
    angles = np.concatenate([angles, angles], axis=1)
    return {"aux.cos": np.cos(angles), "aux.sin": np.sin(angles)}


def _windows(rows: int, columns: int, merge: int, window: int) -> Feeds:
    """Which patches each attention window sees, which of its places are empty, and where each patch lies in them."""
    size = merge * window
    places = _places(rows, columns, merge)
    across = -(-columns // size)
    owner = places[:, 0] // size * across + places[:, 1] // size
    count = -(-rows // size) * across
    index = np.zeros((count, size * size), np.int64)
    bias = np.full((count, 1, 1, size * size), _UNSEEN, np.float32)
    where = np.empty(len(places), np.int64)
    for number in range(count):
        inside = np.flatnonzero(owner == number)
        index[number, : len(inside)] = inside
        bias[number, ..., : len(inside)] = 0.0
        where[inside] = number * size * size + np.arange(len(inside))
    return {"aux.windows": index, "aux.window_bias": bias, "aux.window_places": where}


def _positions(places: NDArray[np.int64], rows: int, columns: int, side: int) -> Feeds:
    """Bilinear taps `[patches, 4]` into a table of `side` squared positions, corners on corners, and their weights."""
    taps, weights = [], []
    for axis, size in enumerate((rows, columns)):
        at = places[:, axis].astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
        low = np.floor(at)
        taps.append(np.minimum(low.astype(np.int64)[:, None] + np.arange(2), side - 1))
        weights.append(np.stack([1 - (at - low), at - low], axis=1))
    index = taps[0][:, :, None] * side + taps[1][:, None, :]
    weight = weights[0][:, :, None] * weights[1][:, None, :]
    return {
        "aux.position_index": index.reshape(-1, 4),
        "aux.position_weights": weight.reshape(-1, 4).astype(np.float32),
    }


@lru_cache(maxsize=16)
def grid_feeds(rows: int, columns: int, spec: PatchesSpec) -> Feeds:
    """What the tower takes beside the patches of a chunk, from its grid alone. Read only: it is cached."""
    places = _places(rows, columns, spec.merge)
    feeds = _rotary(places, spec)
    if spec.window is not None:
        feeds |= _windows(rows, columns, spec.merge, spec.window)
    if spec.position_side is not None:
        feeds |= _positions(places, rows, columns, spec.position_side)
    return feeds


def chunk_feeds(chunks: Chunks, spec: PatchesSpec) -> list[Feeds]:
    """The tower's inputs, chunk by chunk."""
    beside = grid_feeds(chunks.rows, chunks.columns, spec)
    return [{"pixel_values": values, **beside} for values in chunks.pixel_values]
