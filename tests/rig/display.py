"""An X display without a screen (Debian's xvfb): its picture lies in a file that a test can paint."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


def missing() -> str | None:
    """Why there can be no display here, or None."""
    return None if shutil.which("Xvfb") else "Xvfb is not installed"


class Display:
    """`with Display() as display: ... display.name`; of (width, height) `size_px`."""

    def __init__(self, size_px: tuple[int, int] = (320, 240)) -> None:
        self.size_px, self.name = size_px, ""
        self._directory = tempfile.TemporaryDirectory(prefix="edgemm-display-")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Display:
        self.plug()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.unplug()
        self._directory.cleanup()

    def plug(self) -> None:
        """Starts the server, under the same name as before, and waits until it answers."""
        read_fd, write_fd = os.pipe()
        size = f"{self.size_px[0]}x{self.size_px[1]}x24"
        name = [self.name] if self.name else []
        command = ["Xvfb", *name, "-displayfd", str(write_fd), "-screen", "0", size, "-fbdir", self._directory.name]
        self._server = subprocess.Popen(
            command, pass_fds=(write_fd,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(write_fd)
        with os.fdopen(read_fd) as told:
            self.name = f":{told.readline().strip()}"

    def unplug(self) -> None:
        """Ends the server."""
        server, self._server = self._server, None
        if server is not None:
            server.terminate()
            server.wait()

    def paint(self, rgb: tuple[int, int, int]) -> None:
        """The whole screen in one colour."""
        path = Path(self._directory.name) / "Xvfb_screen0"
        width_px, height_px = self.size_px
        head = path.stat().st_size - width_px * height_px * 4
        screen: NDArray[np.uint8] = np.memmap(path, np.uint8, "r+", head, (height_px, width_px, 4))
        screen[..., :3] = rgb[::-1]
