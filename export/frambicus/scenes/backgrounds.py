"""What stands behind the objects: painted textures, or photographs out of focus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.export.frambicus.scenes.assets import Assets, textures
from edgemm.export.frambicus.scenes.config import ScenesConfig

Rgb = NDArray[np.uint8]
Rng = np.random.Generator


def background(config: ScenesConfig, assets: Assets, split: str, rng: Rng) -> Rgb:
    """uint8 [size, size, 3], one that this split may show."""
    photos = assets.backgrounds(config, split)
    if photos and rng.random() < config.photo:
        return _photo(photos[rng.integers(len(photos))], config, rng)
    names = textures(config, split)
    return _PAINTERS[names[rng.integers(len(names))]](config.size_px, rng)


@lru_cache(maxsize=64)
def _read(path: Path) -> Rgb:
    import cv2

    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise SourceError(f"{path} is no picture", hint="make the assets again")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def _photo(path: Path, config: ScenesConfig, rng: Rng) -> Rgb:
    """A square of a photograph, blurred: what is in it must not contradict the caption."""
    import cv2

    photo = _read(path)
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.5, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    cut = cv2.resize(photo[top : top + side, left : left + side], (config.size_px,) * 2, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(cut), (0, 0), rng.uniform(*config.photo_blur_px)), np.uint8)


def _colour(rng: Rng) -> NDArray[np.float64]:
    """A colour, rather pale than loud, as a wall or a table has."""
    grey = rng.uniform(40, 235)
    return np.clip(grey + rng.normal(0, 30, 3), 0, 255)


def _mixed(share: NDArray[np.float64], rng: Rng) -> Rgb:
    """Two colours mixed by `share` [size, size] in 0…1."""
    one, two = _colour(rng), _colour(rng)
    return (one + (two - one) * share[:, :, None]).astype(np.uint8)


def _plain(size: int, rng: Rng) -> Rgb:
    noise = rng.normal(0, rng.uniform(0, 6), (size, size, 1))
    return np.clip(_colour(rng) + noise, 0, 255).astype(np.uint8)


def _axis(size: int, rng: Rng) -> NDArray[np.float64]:
    """The distance of each pixel along a random direction, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size]
    return np.asarray(x * np.cos(angle) + y * np.sin(angle), np.float64)


def _gradient(size: int, rng: Rng) -> Rgb:
    along = _axis(size, rng)
    return _mixed((along - along.min()) / np.ptp(along), rng)


def _clouds(size: int, rng: Rng) -> Rgb:
    """Noise at several scales, each half as strong as the one before."""
    import cv2

    total = np.zeros((size, size))
    for octave in range(2, 6):
        coarse = rng.random((2**octave, 2**octave))
        total += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) / octave
    return _mixed(np.clip((total - total.min()) / np.ptp(total), 0, 1), rng)


def _stripes(size: int, rng: Rng) -> Rgb:
    wave = np.sin(_axis(size, rng) * 2 * np.pi / rng.uniform(12, 60))
    return _mixed(np.clip(wave * rng.uniform(0.7, 4) / 2 + 0.5, 0, 1), rng)


def _dots(size: int, rng: Rng) -> Rgb:
    period = rng.uniform(16, 48)
    y, x = np.mgrid[:size, :size] % period - period / 2
    return _mixed((np.hypot(x, y) < period * rng.uniform(0.15, 0.4)).astype(np.float64), rng)


def _checks(size: int, rng: Rng) -> Rgb:
    period = rng.integers(10, 40)
    y, x = np.mgrid[:size, :size] // period
    return _mixed(((x + y) % 2).astype(np.float64), rng)


def _waves(size: int, rng: Rng) -> Rgb:
    waves = sum(np.sin(_axis(size, rng) * 2 * np.pi / rng.uniform(30, 90) + rng.uniform(0, 6)) for _ in range(3))
    return _mixed(np.asarray(waves / 6 + 0.5), rng)


def _patches(size: int, rng: Rng) -> Rgb:
    """Cells around random points (Voronoi's), two colours and what lies between them."""
    y, x = np.mgrid[:size, :size]
    points = rng.integers(0, size, (int(rng.integers(8, 30)), 2))
    nearest = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    return _mixed(rng.random(len(points))[nearest], rng)


_PAINTERS: Mapping[str, Callable[[int, Rng], Rgb]] = {
    "plain": _plain,
    "gradient": _gradient,
    "clouds": _clouds,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
    "patches": _patches,
}


def clutter(picture: Rgb, config: ScenesConfig, rng: Rng) -> None:
    """Paint a few small plain shapes into `picture`: things that are there and that nothing is said of."""
    import cv2

    size = config.size_px
    for _ in range(rng.integers(config.distractors[0], config.distractors[1] + 1)):
        side = int(size * np.sqrt(rng.uniform(*config.distractor_area)))
        x, y = (int(v) for v in rng.integers(0, size, 2))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            cv2.circle(picture, (x, y), max(1, side // 2), colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(picture, (x, y), (x + side, y + side), colour, -1)
