"""`test://`: a moving pattern with the time painted into it, and a tone.

The first rows hold 32 black or white blocks: `time.monotonic()` in milliseconds, most significant
bit first, so that a reader knows the true age of any picture, even through JPEG.
`test://?size=640x480&fps=30&seconds=5&hz=440` sets size, rate, length (default: for ever), tone.
"""

from __future__ import annotations

import time
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, Sound, Wish

BITS = 32
SIZE_PX = (640, 480)
FPS = 30.0
TONE_HZ = 440.0
TONE_RATE_HZ = 48_000
PIECE_SAMPLES = 1536
_EPOCH_MOD = 1 << BITS


def paint_clock(image: NDArray[np.uint8], milliseconds: int) -> None:
    """Paints the low 32 bits of `milliseconds` into the first rows of [H, W, 3], in place."""
    height = clock_rows(image.shape[0])
    edges = np.linspace(0, image.shape[1], BITS + 1).astype(int)
    for bit in range(BITS):
        on = (milliseconds >> (BITS - 1 - bit)) & 1
        image[:height, edges[bit] : edges[bit + 1]] = 255 if on else 0


def read_clock(image: NDArray[np.uint8]) -> int:
    """The milliseconds that `paint_clock` painted into [H, W, 3]."""
    middle = clock_rows(image.shape[0]) // 2
    edges = np.linspace(0, image.shape[1], BITS + 1).astype(int)
    centres = (edges[:-1] + edges[1:]) // 2
    value = 0
    for on in image[middle, centres].mean(axis=-1) > 127:
        value = value << 1 | int(on)
    return value


def clock_rows(height_px: int) -> int:
    """How many of the first rows the clock takes."""
    return max(height_px // 15, 1)


def age_s(image: NDArray[np.uint8], monotonic_s: float) -> float:
    """How old the picture is at a reading of `time.monotonic()`, by its own clock."""
    now_ms = int(monotonic_s * 1000) % _EPOCH_MOD
    return ((now_ms - read_clock(image) + _EPOCH_MOD // 2) % _EPOCH_MOD - _EPOCH_MOD // 2) / 1000


class _Options:
    """What stands in the query of a test:// address."""

    def __init__(self, spec: str) -> None:
        query = {key: values[-1] for key, values in parse_qs(urlsplit(spec).query).items()}
        unknown = sorted(set(query) - {"size", "fps", "seconds", "hz"})
        try:
            width, height = (int(part) for part in query.get("size", "640x480").split("x"))
            self.size_px = (width, height)
            self.fps = float(query.get("fps", FPS))
            self.seconds = float(query.get("seconds", "inf"))
            self.tone_hz = float(query.get("hz", TONE_HZ))
            valid = not unknown and min(width, height) >= BITS and self.fps > 0
        except ValueError:
            valid = False
        if not valid:
            raise SourceError(
                f"{spec} is not a test pattern",
                hint="write test:// or test://?size=640x480&fps=30&seconds=5&hz=440",
            )


class PatternReader:
    """A bright square moves over a gradient, in real time at the wished rate."""

    def __init__(self, spec: str, wish: Wish) -> None:
        options = _Options(spec)
        asked_in_query = parse_qs(urlsplit(spec).query)
        self._fps = wish.fps if wish.fps and "fps" not in asked_in_query else options.fps
        size_px = wish.size_px if "size" not in asked_in_query else None
        self._width_px, self._height_px = size_px or options.size_px
        self._frames = options.seconds * self._fps
        self._n = 0
        self._start_s = 0.0
        self._ground: NDArray[np.uint8] | None = None

    def open(self) -> None:
        """Paints the ground."""
        x = np.linspace(0, 255, self._width_px, dtype=np.uint8)
        y = np.linspace(0, 255, self._height_px, dtype=np.uint8)
        ground = np.empty((self._height_px, self._width_px, 3), np.uint8)
        ground[..., 0], ground[..., 1], ground[..., 2] = x[None, :], y[:, None], 96
        self._ground = ground
        self._start_s = time.monotonic()

    def read(self) -> Picture | None:
        """Waits for the next frame's time; a reader that is late loses none."""
        if self._n >= self._frames:
            return None
        assert self._ground is not None
        t_media_s = self._n / self._fps
        time.sleep(max(0.0, self._start_s + t_media_s - time.monotonic()))
        image = self._ground.copy()
        side = max(self._height_px // 6, 1)
        top = clock_rows(self._height_px)
        x = (self._n * 4) % max(self._width_px - side, 1)
        y = top + (self._n * 3) % max(self._height_px - side - top, 1)
        image[y : y + side, x : x + side] = (250, 220, 40)
        paint_clock(image, int(time.monotonic() * 1000))
        self._n += 1
        return image, t_media_s

    def close(self) -> None:
        """There is nothing to close."""


class ToneReader:
    """A sine of amplitude 0.2 at 48 kHz, in real time, in pieces of 32 ms."""

    def __init__(self, spec: str) -> None:
        options = _Options(spec)
        self._tone_hz = options.tone_hz
        self._samples = options.seconds * TONE_RATE_HZ
        self._n = 0
        self._start_s = 0.0

    def open(self) -> None:
        """Sets the start."""
        self._start_s = time.monotonic()

    def read(self) -> Sound | None:
        """Waits until the next piece would have been recorded."""
        if self._n >= self._samples:
            return None
        first = self._n
        count = int(min(PIECE_SAMPLES, self._samples - first))
        end_s = self._start_s + (first + count) / TONE_RATE_HZ
        time.sleep(max(0.0, end_s - time.monotonic()))
        phase = 2 * np.pi * self._tone_hz * np.arange(first, first + count) / TONE_RATE_HZ
        self._n += count
        return Sound(
            (0.2 * np.sin(phase)).astype(np.float32),
            TONE_RATE_HZ,
            t_media_s=first / TONE_RATE_HZ,
            t_monotonic_s=self._start_s + first / TONE_RATE_HZ,
        )

    def close(self) -> None:
        """There is nothing to close."""
