"""The overlay window, where there is a display."""

from __future__ import annotations

import os
from typing import Any

from edgemm.live.events import Event
from edgemm.live.frames import Frame
from edgemm.live.overlay import Overlay, Results
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

_QUIT_KEYS = frozenset({ord("q"), ord("Q"), 27})


def why_no_window() -> str | None:
    """One line that says why no window can be shown here; None where one can."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "no window: there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    import cv2

    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip()[:4] == "GUI:"]
    if gui and gui[0].split()[-1] == "NONE":
        return "no window: this OpenCV was built without one (run: pip install opencv-python)"
    return None


class WindowSink:
    """Shows the newest frame of each camera with its results; q, Esc or closing it ends the run.
    All calls to the window system are made in the sink's own thread."""

    name = "window"
    essential = False
    limits = SinkLimits(events=1024, frames=1)

    def __init__(self, title: str = "edgemm") -> None:
        self._title = title
        self._results = Results()
        self._overlay: Overlay | None = None
        self._context: SinkContext | None = None
        self._cv2: Any = None
        self._shown: set[str] = set()

    def open(self, context: SinkContext) -> None:
        """Makes ready; a window opens with the first frame of its camera."""
        import cv2

        self._cv2, self._context, self._overlay = cv2, context, Overlay()

    def handle(self, item: Item) -> None:
        """Follows events and shows frames."""
        if isinstance(item, Event):
            self._results.update(item)
        elif isinstance(item, Frame):
            self._show(item)

    def close(self) -> None:
        """Closes the windows."""
        for name in self._shown:
            self._cv2.destroyWindow(name)
        if self._shown:
            self._cv2.waitKey(1)

    def _show(self, frame: Frame) -> None:
        assert self._overlay is not None
        assert self._context is not None
        name = self._title if frame.source == "camera" else f"{self._title} {frame.source}"
        if name not in self._shown:
            kind = self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO | self._cv2.WINDOW_GUI_NORMAL
            self._cv2.namedWindow(name, kind)
            self._cv2.resizeWindow(name, frame.image.shape[1], frame.image.shape[0])
            self._shown.add(name)
        image = self._overlay.draw(frame, self._results)
        self._cv2.imshow(name, self._cv2.cvtColor(image, self._cv2.COLOR_RGB2BGR))
        pressed = self._cv2.waitKey(1) & 0xFF in _QUIT_KEYS
        if pressed or self._cv2.getWindowProperty(name, self._cv2.WND_PROP_VISIBLE) < 1:
            self._context.stop()
