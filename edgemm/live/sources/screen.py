"""`screen://`: what an X display shows (FFmpeg's x11grab), with the pointer.

`screen://` is the display of DISPLAY, `screen://:1` another one, `screen://:1+100,200` starts there. FFmpeg crashes
where the display goes away while it is being opened, so a child process grabs.
"""

from __future__ import annotations

import os
import sys

from edgemm.errors import SourceError
from edgemm.live.sources.base import TransientSourceError, Wish
from edgemm.live.sources.child import ChildReader

FPS = 15.0

# Its own words rather than a module of edgemm: it starts in the time that PyAV takes.
_GRAB = """
import signal, struct, sys
import av

signal.signal(signal.SIGINT, signal.SIG_DFL)
display, fps, size, fd = sys.argv[1:]
options = {"framerate": fps, "fpsprobesize": "0", "analyzeduration": "0"}  # else seconds pass before the first picture
try:
    with av.open(display, format="x11grab", options=options) as grabbed, open(int(fd), "wb", 0) as out:
        for frame in grabbed.decode(video=0):
            if size == "-":
                size = f"{frame.width}x{frame.height}"
                out.write(struct.pack("<2i", frame.width, frame.height))
            width, height = map(int, size.split("x"))
            left = memoryview(frame.reformat(width, height, "bgra").to_ndarray()).cast("B")
            while left:
                left = left[out.write(left):]
except BrokenPipeError:
    pass
except (OSError, av.error.FFmpegError) as error:
    sys.exit(f"the display cannot be grabbed: {error.strerror}")
"""


class ScreenReader(ChildReader):
    """A display, grabbed so many times a second."""

    def __init__(self, spec: str, wish: Wish) -> None:
        super().__init__(spec, wish.size_px)
        self._display = spec.removeprefix("screen://") or os.environ.get("DISPLAY", "")
        self._fps = wish.fps or FPS

    def open(self) -> None:
        """Raises SourceError where no display is named."""
        if not self._display:
            raise SourceError(
                "there is no screen to look at: DISPLAY is not set", hint="name it: --camera screen://:0 (an X display)"
            )
        super().open()

    def command(self, fd: int) -> list[str]:
        """This Python, with PyAV alone."""
        size = "-" if self._wished_px is None else "{}x{}".format(*self._wished_px)
        return [sys.executable, "-c", _GRAB, self._display, f"{self._fps:g}", size, str(fd)]

    def ended(self, lines: list[str]) -> SourceError:
        """A display may come back."""
        return TransientSourceError(f"{self._spec} ended: {lines[-1]}", hint="is it on, and may you see it?")


def screen_video(spec: str, wish: Wish) -> ScreenReader:
    """Pictures of a display, scaled to the wished size."""
    return ScreenReader(spec, wish)
