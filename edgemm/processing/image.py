"""Pictures: from a path or an array to what the vision graph takes, as transformers does it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import AnyresSpec, EdgesSpec, ImageSpec, Normalization, ResizeCropSpec, TilesSpec
from edgemm.errors import InputError, SourceError
from edgemm.processing import anyres, edges, media, tiles
from edgemm.processing.resample import Pixels, resize

__all__ = ["ImageInput", "preprocess", "preprocess_many", "resize", "to_rgb"]


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What one or more pictures become.

    `pixel_values` float32 `[N, 3, H, W]`; `pixel_mask` bool `[N, H, W]`, true where there is
    picture; `rows` and `cols` are each picture's tile grid, 0 where it was not split.
    """

    pixel_values: NDArray[np.float32]
    pixel_mask: NDArray[np.bool_]
    rows: tuple[int, ...]
    cols: tuple[int, ...]


def to_rgb(image: object) -> Pixels:
    """Decode to uint8 `[H, W, 3]` RGB.

    Takes a path (EXIF orientation is applied), a PIL image, or an array `[H, W]` or `[H, W, 1 | 3 |
    4]` of uint8 or uint16 in RGB order; alpha is dropped. Raises `InputError` for anything else,
    `SourceError` for a bad file.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(image)
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        deep = image.mode.startswith("I;16")
        return _array_to_rgb(np.asarray(image if deep else image.convert("RGB")))
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    raise InputError(
        f"a picture cannot be a {type(image).__name__}",
        hint="pass a path, a PIL image, or a uint8 array [H, W, 3] in RGB order",
    )


def _read(path: str | os.PathLike[str]) -> Pixels:
    import cv2

    file = media.check_file(path)
    try:
        bgr = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        bgr = None
    if bgr is None:
        what = "a text file" if media.is_text(media.read_head(file)) else "not a picture that can be decoded"
        raise SourceError(f"{file} is {what}", hint="give a JPEG, PNG, WebP, BMP or TIFF file")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _array_to_rgb(array: NDArray[Any]) -> Pixels:
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(
            f"a picture of {array.dtype} is ambiguous: expected uint8 in 0…255",
            hint="scale it to 0…255 and call .astype(numpy.uint8)",
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"a picture of shape {list(array.shape)} is not usable: expected [H, W] or [H, W, 1 | 3 | 4]",
            hint="channels come last; pass one picture at a time",
        )
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


@lru_cache(maxsize=32)
def _levels(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of each grey level `[3, 256]`, rounded as transformers rounds."""
    scaled = (np.arange(256, dtype=np.float64) * rescale).astype(np.float32)
    return (scaled[None] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def normalize(pictures: Sequence[Pixels], spec: Normalization) -> NDArray[np.float32]:
    """Equal-sized `[H, W, 3]` uint8 → normalised float32 `[N, 3, H, W]`."""
    import cv2

    levels = _levels(spec.rescale_factor, spec.mean, spec.std)
    values = np.empty((len(pictures), 3, *pictures[0].shape[:2]), np.float32)
    for planes, picture in zip(values, pictures, strict=True):
        for channel in range(3):
            cv2.LUT(
                np.ascontiguousarray(picture[:, :, channel]),
                levels[channel : channel + 1],
                planes[channel],
            )
    return values


def _fit(image: Pixels, spec: ResizeCropSpec) -> Pixels:
    size = (spec.height_px, spec.width_px)
    image = image if spec.square_fill is None else anyres.squared(image, spec.square_fill)
    height, width = image.shape[:2]
    if spec.fit == "stretch":
        return resize(image, size, spec.resample)
    if spec.fit == "crop_then_resize":
        side = min(height / size[0], width / size[1]) * spec.crop_fraction
        cut = (max(1, int(size[0] * side)), max(1, int(size[1] * side)))
        top, left = (height - cut[0] + 1) // 2, (width - cut[1] + 1) // 2
        return resize(image[top : top + cut[0], left : left + cut[1]], size, spec.resample)
    return _resize_then_crop(image, size, spec)


def _resize_then_crop(image: Pixels, size: tuple[int, int], spec: ResizeCropSpec) -> Pixels:
    """The shorter edge to `size / crop_fraction`, then the centre `size`, as CLIP's processor."""
    height, width = image.shape[:2]
    short = max(1, round(max(size) / spec.crop_fraction))
    wide = width > height
    scaled = (short, int(short * width / height)) if wide else (int(short * height / width), short)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return resize(image, scaled, spec.resample, window=(top, left, *size))


def _by_edges(pictures: Sequence[Pixels], spec: EdgesSpec) -> ImageInput:
    scaled = [resize(p, edges.size_of((p.shape[0], p.shape[1]), spec), spec.resample) for p in pictures]
    canvas = spec.canvas_px or (max(p.shape[0] for p in scaled), max(p.shape[1] for p in scaled))
    values = np.zeros((len(scaled), 3, *canvas), np.float32)
    mask = np.zeros((len(scaled), *canvas), np.bool_)
    for i, picture in enumerate(scaled):
        height, width = picture.shape[:2]
        values[i, :, :height, :width] = normalize([picture], spec)[0]
        mask[i, :height, :width] = True
    return ImageInput(values, mask, *((0,) * len(scaled),) * 2)


def preprocess_many(images: Sequence[object], spec: ImageSpec) -> ImageInput:
    """Several pictures of one prompt; their tiles lie one after another.

    Raises `InputError` for no picture or an unusable one, `SourceError` for a file that is none.
    """
    if not images:
        raise InputError("no picture was given: expected at least one")
    pictures = [to_rgb(image) for image in images]
    if isinstance(spec, EdgesSpec):
        return _by_edges(pictures, spec)
    if isinstance(spec, ResizeCropSpec):
        parts = [_fit(picture, spec) for picture in pictures]
        rows = cols = (0,) * len(parts)
    elif isinstance(spec, AnyresSpec):
        cuts = [anyres.cut(p, spec) if len(pictures) == 1 else anyres.whole(p, spec) for p in pictures]
        parts = [tile for one in cuts for tile in one.tiles]
        rows, cols = tuple(c.rows for c in cuts), tuple(c.cols for c in cuts)
    elif not isinstance(spec, TilesSpec):
        raise InputError(f"pictures of kind {spec.kind} are cut into patches, not into tiles")
    else:
        grids = [tiles.split(picture, spec) for picture in pictures]
        parts = [tile for grid in grids for tile in grid.tiles]
        rows, cols = tuple(g.rows for g in grids), tuple(g.cols for g in grids)
    values = normalize(parts, spec)
    return ImageInput(values, np.ones((len(parts), *values.shape[2:]), np.bool_), rows, cols)


def preprocess(image: object, spec: ImageSpec) -> ImageInput:
    """One picture (anything that `to_rgb` takes) → the vision graph's inputs."""
    return preprocess_many([image], spec)
