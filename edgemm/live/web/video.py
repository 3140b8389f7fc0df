"""A camera's newest picture on its way to one viewer by WebRTC, with the frame's number written under it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.live.capture import RateLimit
from edgemm.live.frames import Frame

FPS = 15.0
WIDTH_PX = 960
# A picture that nothing follows is sent again: a viewer may have lost it, or ask for a whole one.
REPEAT_S = 1.0
CLOCK_HZ = 90_000
# page/rtc.js has the same two. A browser does not tell which frame a decoded picture was, so the picture says it.
STRIP_PX = 16
BITS = 40

_NARROWEST_PX = 160
_SALT = 0x5A


class Feed:
    """One place for the newest picture of `source`; what was not taken is replaced. It belongs to an event loop."""

    def __init__(self, source: str, newest: Frame | None) -> None:
        self.source = source
        self._limit = RateLimit(FPS)
        self._frame, self._put_s = newest, time.monotonic()
        self._start_s = newest.t_capture_s if newest else None
        self._come = asyncio.Event()
        self._pts = -1
        if newest is not None:
            self._come.set()

    def put(self, frame: Frame) -> None:
        """Takes a frame of any camera; at most `FPS` a second of its own are kept."""
        if frame.source == self.source and self._limit.admits(frame.t_capture_s):
            self._frame, self._put_s = frame, time.monotonic()
            self._come.set()

    async def next(self) -> tuple[Frame, int]:
        """The newest frame and its time in 1/90000 s by the frame's own clock, later than the one before."""
        again = False
        try:
            async with asyncio.timeout(REPEAT_S if self._frame else None):  # wait_for may lose a cancellation
                await self._come.wait()
        except TimeoutError:
            again = True
        self._come.clear()
        frame = self._frame
        assert frame is not None
        self._start_s = frame.t_capture_s if self._start_s is None else self._start_s
        t_s = frame.t_capture_s - self._start_s + (time.monotonic() - self._put_s if again else 0.0)
        self._pts = max(self._pts + 1, round(t_s * CLOCK_HZ))
        return frame, self._pts


class Outgoing:
    """The pictures of one camera for one page."""

    def __init__(self, feed: Feed) -> None:
        self.kinds: Sequence[str] = ("video",)
        self.direction, self.over = "recvonly", False
        self.feed = feed
        self._track: Any = None

    def attach(self, connection: Any) -> None:
        """Before the offer is read."""
        self._track = track(self.feed)
        connection.addTransceiver(self._track, direction="sendonly")

    def answered(self) -> None:
        """The track flows by itself."""

    def alive(self) -> bool:
        """Whoever sees sends nothing."""
        return False

    def stop(self) -> None:
        """Nothing more is sent."""
        if self._track is not None:
            self._track.stop()


def track(feed: Feed) -> Any:
    """An aiortc track of a feed. Pictures are made in the loop's executor, where aiortc encodes them too."""
    from aiortc.mediastreams import VIDEO_TIME_BASE, MediaStreamError, MediaStreamTrack

    class Video(MediaStreamTrack):  # type: ignore[misc]  # aiortc is not followed
        kind = "video"

        async def recv(self) -> Any:
            if self.readyState != "live":
                raise MediaStreamError
            frame, pts = await feed.next()
            picture = await asyncio.to_thread(_encodable, frame)
            picture.pts, picture.time_base = pts, VIDEO_TIME_BASE
            return picture

    return Video()


def _encodable(frame: Frame) -> Any:
    """A frame of PyAV: what encoders take, with the number."""
    import av

    return av.VideoFrame.from_ndarray(numbered(frame.image, frame.id), "rgb24").reformat(format="yuv420p")


def numbered(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] as [h + STRIP_PX, w, 3], w at most `WIDTH_PX`, all even. The last rows hold `BITS` black or white
    blocks: the low 32 bits of `number`, most significant first, and 8 that check them."""
    import cv2

    height, width = image.shape[:2]
    zoom = min(1.0, WIDTH_PX / width) if width >= _NARROWEST_PX else _NARROWEST_PX / width
    width_px, height_px = (max(2, round(side * zoom) // 2 * 2) for side in (width, height))
    out = np.empty((height_px + STRIP_PX, width_px, 3), np.uint8)
    if (height_px, width_px) == (height, width):
        out[:height_px] = image
    else:
        cv2.resize(image, (width_px, height_px), dst=out[:height_px], interpolation=cv2.INTER_AREA)
    word = (number & 0xFFFFFFFF) << 8 | _check(number)
    edges = np.linspace(0, width_px, BITS + 1).astype(int)
    for bit in range(BITS):
        out[height_px:, edges[bit] : edges[bit + 1]] = 255 if word >> (BITS - 1 - bit) & 1 else 0
    return out


def number_of(picture: NDArray[np.uint8]) -> int | None:
    """The number under a picture that `numbered` made, uint8 [h + STRIP_PX, w, 3], decoded. None without one."""
    edges = np.linspace(0, picture.shape[1], BITS + 1).astype(int)
    word = 0
    for on in picture[-STRIP_PX // 2, (edges[:-1] + edges[1:]) // 2].mean(axis=-1) > 127:
        word = word << 1 | int(on)
    return word >> 8 if word & 0xFF == _check(word >> 8) else None


def _check(number: int) -> int:
    return (sum((number & 0xFFFFFFFF).to_bytes(4)) + _SALT) & 0xFF
