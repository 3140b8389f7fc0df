"""USB and built-in cameras on Linux: OpenCV's V4L2 backend.

The pictures themselves can only be tested on hardware; everything around them is tested with a
stand-in for cv2.VideoCapture.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import SourceError
from edgemm.live.devices import Camera, lasting_link, list_cameras
from edgemm.live.sources.base import Picture, TransientSourceError, Wish

_INDEX = re.compile(r"\d{1,3}")


def is_v4l2(spec: str) -> bool:
    """An index, a device's path, or a part of the name of a camera that is there."""
    return bool(
        _INDEX.fullmatch(spec)
        or spec.startswith("/dev/video")
        or spec.startswith("/dev/v4l/")
        or _by_name(spec, list_cameras())
    )


def device_path(spec: str) -> Path:
    """The device that a spec means. Raises SourceError where several names match."""
    if _INDEX.fullmatch(spec):
        return Path(f"/dev/video{int(spec)}")
    if spec.startswith("/dev/"):
        return Path(spec)
    cameras = list_cameras()
    matches = _by_name(spec, cameras)
    if not matches:
        raise _not_there(spec, f"a camera with {spec!r} in its name", cameras)
    if len({camera.name for camera in matches}) > 1:
        names = "; ".join(f"{camera.spec} {camera.name}" for camera in matches)
        raise SourceError(f"{spec!r} fits several cameras: {names}", hint="give its /dev/videoN")
    return Path(matches[0].spec)


def lasting_path(spec: str) -> str:
    """udev's name of the camera that an index or /dev/videoN means now, where it has one, else the spec as it is.
    A part of a name lasts by itself."""
    numbered = _INDEX.fullmatch(spec) or spec.startswith("/dev/video")
    return (lasting_link(device_path(spec)) if numbered else "") or spec


def plugged_in(spec: str) -> bool:
    """Whether the device is there (again)."""
    try:
        return device_path(spec).exists()
    except SourceError:
        return False


class V4l2Reader:
    """Reads a camera, asked for size and rate; the camera chooses the nearest that it has."""

    def __init__(self, spec: str, wish: Wish) -> None:
        self._spec, self._wish = spec, wish
        self._capture: Any = None

    def open(self) -> None:
        """Raises TransientSourceError where the device is not there or busy."""
        import cv2

        path = device_path(self._spec)
        if not path.exists():
            raise _not_there(self._spec, str(path), list_cameras())
        capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_V4L2)
        if not capture.isOpened():
            capture.release()
            raise TransientSourceError(
                f"{path} is there but cannot be opened as a camera",
                hint="another program may hold it (fuser -v), or you may not be in group video",
            )
        self._ask(cv2, capture)
        self._capture = capture

    def _ask(self, cv2: Any, capture: Any) -> None:
        wish = self._wish
        if wish.size_px is not None or (wish.fps or 0) > 15:
            # raw YUYV of a large picture does not fit through USB 2 at 30 fps
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        if wish.size_px is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, wish.size_px[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wish.size_px[1])
        if wish.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, wish.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)

    def read(self) -> Picture | None:
        """The next picture. Raises TransientSourceError when the camera gives none."""
        import cv2

        ok, image = self._capture.read()
        if not ok or image is None:
            raise TransientSourceError(f"{self._spec} gives no pictures any more")
        to_rgb = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
        return np.asarray(cv2.cvtColor(image, to_rgb), np.uint8), None

    def close(self) -> None:
        """Releases the device; called by the thread that reads it."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


def _by_name(spec: str, cameras: tuple[Camera, ...]) -> list[Camera]:
    part = spec.strip().casefold()
    return [camera for camera in cameras if part and part in camera.name.casefold()]


def _not_there(spec: str, wanted: str, cameras: tuple[Camera, ...]) -> SourceError:
    found = ", ".join(f"{camera.spec} ({camera.name})" for camera in cameras)
    return SourceError(
        f"camera {spec}: {wanted} is not there; "
        + (f"cameras found: {found}" if found else "no camera was found (no /dev/video*)"),
        hint="run: edgemm devices, or try --camera test://, a video file or an rtsp:// address",
    )
