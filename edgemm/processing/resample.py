"""Picture resizing that equals Pillow's, without Pillow: the models were trained on its pixels.

Pillow resamples in two passes, each a weighted sum over a window that widens when shrinking
(antialiasing), with weights rounded to 22 fractional bits and pixels rounded to 8 bits between the
passes. The sums here run as float64 matrix products, which hold those integers exactly, over bands
of the output so that the zeros of the weight matrix are not multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError

Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

_WEIGHT_BITS = 22
_BAND = 16
_CACHE_BYTES = 1_500_000
# OpenBLAS starts threads for products above about a million multiplications. They spin, and where a
# model runs beside them one resize was seen to take 200 ms instead of 6.
_BLAS_ALONE = 600_000
_MAX_EDGE_PX = 32_768


def _box(x: Floats) -> Floats:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Floats) -> Floats:
    a, d = -0.5, np.abs(x)
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * a
    return np.where(d < 1.0, near, np.where(d < 2.0, far, 0.0))


def _sinc(x: Floats) -> Floats:
    scaled = np.where(x == 0.0, 1.0, x * math.pi)
    return np.where(x == 0.0, 1.0, np.sin(scaled) / scaled)


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


_FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


@dataclass(frozen=True)
class _Band:
    """Outputs `first:last` are `weights` times the `taps` inputs that start at `source`."""

    first: int
    last: int
    source: int
    weights: NDArray[Any]

    @property
    def taps(self) -> int:
        return int(self.weights.shape[1])


def _window(size_in: int, size_out: int, support: float) -> tuple[NDArray[np.int64], ...]:
    """First and past-the-last input of every output pixel, as Pillow truncates them."""
    center = (np.arange(size_out) + 0.5) * (size_in / size_out)
    begin = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), size_in)
    return begin, end


def _weights(size_in: int, size_out: int, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Begins `[size_out]` and integer weights `[size_out, taps]`, zero past each window."""
    function, radius = _FILTERS[name]
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    begin, end = _window(size_in, size_out, radius * stretch)
    taps = np.arange(int((end - begin).max()))
    center = (np.arange(size_out) + 0.5) * scale
    offset = (taps[None] + begin[:, None]) - center[:, None] + 0.5
    raw = np.where(taps[None] < (end - begin)[:, None], function(offset * (1.0 / stretch)), 0.0)
    # cumsum adds in order as Pillow does; sum() would pair the terms and differ in the last bit.
    total = np.cumsum(raw, axis=1)[:, -1:]
    raw = np.divide(raw, total, out=raw, where=total != 0.0)
    fixed = raw * (1 << _WEIGHT_BITS)
    return begin, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5))


@lru_cache(maxsize=64)
def _bands(size_in: int, size_out: int, name: str, first: int, last: int, fast: bool) -> tuple[_Band, ...]:
    """The weight matrix of outputs `first:last`, cut into bands. Cached by sizes."""
    begin, weights = _weights(size_in, size_out, name)
    taps = weights.shape[1]
    bands = []
    for low in range(first, last, _BAND):
        high = min(low + _BAND, last)
        source = int(begin[low])
        width = min(int(begin[high - 1]) + taps, size_in) - source
        dense = np.zeros((high - low, width))
        for row in range(low, high):
            shift = int(begin[row]) - source
            count = min(taps, width - shift)
            dense[row - low, shift : shift + count] = weights[row, :count]
        dense /= 1 << _WEIGHT_BITS
        bands.append(_Band(low - first, high - first, source, dense.astype(np.float32 if fast else np.float64)))
    return tuple(bands)


def _block(rows: int, bands: tuple[_Band, ...], itemsize: int) -> int:
    """How many columns to multiply at once."""
    largest = max(band.weights.size for band in bands)
    return max(16, min(_CACHE_BYTES // (rows * itemsize), _BLAS_ALONE // largest))


def _combine(image: Pixels, bands: tuple[_Band, ...], start: int, fast: bool) -> Pixels:
    """Weighted sums over axis 0 of `[in, other, 3]`, whose first row is source row `start`."""
    flat = image.reshape(len(image), -1)
    out = np.empty((bands[-1].last, flat.shape[1]), np.uint8)
    dtype = np.dtype(np.float32 if fast else np.float64)
    block = _block(len(image), bands, dtype.itemsize)
    # Fresh arrays for every block would cost as many page faults as the sums cost time.
    room_in, room_out = np.empty(len(image) * block, dtype), np.empty(len(out) * block, dtype)
    for low in range(0, flat.shape[1], block):
        part = flat[:, low : low + block]
        inputs = room_in[: part.size].reshape(part.shape)
        sums = room_out[: len(out) * part.shape[1]].reshape(len(out), -1)
        inputs[:] = part
        for band in bands:
            at = band.source - start
            np.matmul(band.weights, inputs[at : at + band.taps], out=sums[band.first : band.last])
        sums += 0.5
        np.floor(sums, out=sums)
        np.clip(sums, 0, 255, out=sums)
        out[:, low : low + block] = sums
    return out.reshape(len(out), *image.shape[1:])


@dataclass(frozen=True)
class _Pass:
    """Resampling of one axis: outputs `first:last` from inputs `start:stop`."""

    size_in: int
    size_out: int
    first: int
    last: int
    bands: tuple[_Band, ...]

    @property
    def start(self) -> int:
        return self.bands[0].source if self.bands else self.first

    @property
    def stop(self) -> int:
        return max(band.source + band.taps for band in self.bands) if self.bands else self.last

    def rows(self, image: Pixels, fast: bool) -> Pixels:
        """`[stop - start, W, 3]` → `[last - first, W, 3]`."""
        return _combine(image, self.bands, self.start, fast) if self.bands else image

    def columns(self, image: Pixels, fast: bool) -> Pixels:
        """`[H, stop - start, 3]` → `[H, last - first, 3]`."""
        return _turn(self.rows(_turn(image), fast)) if self.bands else image


def _plan(size_in: int, size_out: int, name: str, first: int, count: int, fast: bool) -> _Pass:
    """Pillow skips the pass of an axis that keeps its size; such a pass has no bands."""
    last = first + count
    bands = _bands(size_in, size_out, name, first, last, fast) if size_in != size_out else ()
    return _Pass(size_in, size_out, first, last, bands)


@lru_cache(maxsize=64)
def _nearest(size_in: int, size_out: int) -> NDArray[np.int64]:
    """Pillow's source index of every output pixel: like it, by adding up steps."""
    step = size_in / size_out
    steps = np.full(size_out, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size_in - 1)


def _turn(image: Pixels) -> Pixels:
    import cv2

    return np.asarray(cv2.transpose(np.ascontiguousarray(image)), np.uint8)


def _check(image: Pixels, size_hw: tuple[int, int], filter: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"cannot resize an array {list(image.shape)} of {image.dtype}: expected [H, W, 3] of uint8",
            hint="call edgemm.processing.image.to_rgb first",
        )
    if not all(1 <= edge <= _MAX_EDGE_PX for edge in size_hw):
        raise InputError(f"cannot resize to {size_hw}: expected edges of 1 to {_MAX_EDGE_PX} px")
    if filter not in (*_FILTERS, "nearest"):
        raise InputError(f"unknown filter {filter!r}: expected one of nearest, {', '.join(_FILTERS)}")


def resize(
    image: Pixels,
    size_hw: tuple[int, int],
    filter: Filter = "bicubic",
    *,
    window: tuple[int, int, int, int] | None = None,
    fast: bool = False,
) -> Pixels:
    """Resize `[H, W, 3]` uint8 to `size_hw`, bit for bit as `PIL.Image.resize` does.

    `window` (top, left, height, width) returns only that part of the result and computes no more
    than it needs. `fast` sums in float32: about half the time, and about one pixel in 1,000
    differs by one grey level or two. Raises `InputError` for another shape, dtype, filter or an
    edge out of bounds.
    """
    _check(image, size_hw, filter)
    top, left, height, width = window or (0, 0, *size_hw)
    if filter == "nearest":
        rows = _nearest(image.shape[0], size_hw[0])[top : top + height]
        columns = _nearest(image.shape[1], size_hw[1])[left : left + width]
        return image[rows[:, None], columns]
    down = _plan(image.shape[0], size_hw[0], filter, top, height, fast)
    across = _plan(image.shape[1], size_hw[1], filter, left, width, fast)
    # Only the pixels that the passes read are touched.
    part = image[down.start : down.stop, across.start : across.stop]
    # Measured on Pillow 13: which axis goes first depends on how many pixels each one loses.
    rows_lost, columns_lost = image.shape[0] - size_hw[0], image.shape[1] - size_hw[1]
    if rows_lost > max(0, 2 * columns_lost):
        part = across.columns(down.rows(part, fast), fast)
    else:
        part = down.rows(across.columns(part, fast), fast)
    return np.array(part) if part.base is not None else part
