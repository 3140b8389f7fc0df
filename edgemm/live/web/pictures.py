"""The newest picture of each camera as JPEG, encoded once for everybody who looks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.live.capture import RateLimit
from edgemm.live.frames import Frame

FPS = 10.0
WIDTH_PX = 1280
QUALITY = 75


class Pictures:
    """At most `FPS` pictures a second and camera, at most `WIDTH_PX` wide. Without viewers nothing is encoded.

    `take` is called in the sink's thread, the rest from any.
    """

    def __init__(self) -> None:
        self.viewers = 0
        self.encoded = 0
        self.sizes_px: dict[str, tuple[int, int]] = {}
        self._limits: dict[str, RateLimit] = {}
        self._newest: dict[str, Frame] = {}
        self._jpegs: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def take(self, frame: Frame) -> bool:
        """Whether there is a new picture to send."""
        self.sizes_px[frame.source] = (frame.image.shape[1], frame.image.shape[0])
        self._newest[frame.source] = frame
        limit = self._limits.setdefault(frame.source, RateLimit(FPS))
        if not self.viewers or not limit.admits(frame.t_capture_s):
            return False
        self.jpeg(frame.source)
        return True

    def sources(self) -> list[str]:
        """The cameras that have shown something."""
        return list(self.sizes_px)

    def newest(self, source: str) -> Frame | None:
        """The newest frame of a camera; None before the first."""
        return self._newest.get(source)

    def jpeg(self, source: str) -> tuple[int, bytes] | None:
        """The id of the newest frame of a camera, and the frame as JPEG; None before the first."""
        frame = self._newest.get(source)
        if frame is None:
            return None
        with self._lock:
            done = self._jpegs.get(source)
            if done is None or done[0] != frame.id:
                done = self._jpegs[source] = (frame.id, encode(frame.image))
                self.encoded += 1
            return done

    def last(self, source: str) -> tuple[int, bytes] | None:
        """What was encoded last; never encodes."""
        return self._jpegs.get(source)


def encode(image: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3] RGB as JPEG, no wider than `WIDTH_PX`."""
    import cv2

    height, width = image.shape[:2]
    if width > WIDTH_PX:
        size_px = (WIDTH_PX, max(1, round(height * WIDTH_PX / width)))
        image = np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    encoded: Any = data
    return bytes(encoded)
