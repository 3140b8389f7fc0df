"""Pictures and sounds that are awkward, and the same in every run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray


def _picture(height: int, width: int, *, smooth: bool = True) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * 10_007 + width)
    if not smooth:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / (7 + 5 * c) + y / (11 + 3 * c) + c) for c in range(3)]
    noise = rng.normal(0, 6, (height, width, 3))
    return np.clip(np.stack(waves, -1) * 100 + 128 + noise, 0, 255).astype(np.uint8)


def _sound(seconds: float, rate_hz: int = 16_000) -> NDArray[np.float32]:
    rng = np.random.default_rng(int(seconds * 1000))
    t = np.arange(max(1, round(seconds * rate_hz))) / rate_hz
    chirp = 0.4 * np.sin(2 * np.pi * (180 + 40 * t) * t) * (0.6 + 0.4 * np.sin(5 * t))
    return (chirp + rng.normal(0, 0.01, t.shape)).astype(np.float32)


@pytest.fixture(scope="session")
def picture() -> Callable[..., NDArray[np.uint8]]:
    return _picture


@pytest.fixture(scope="session")
def sound() -> Callable[..., NDArray[np.float32]]:
    return _sound
