"""Pictures that a child process writes into a pipe: where native code may hang or crash, only the child does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import tempfile
import time
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, TransientSourceError

START_TIMEOUT_S = 6.0
READ_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 0.4
_PIPE_BYTES = 1 << 20


class ChildReader:
    """Starts a program that writes BGRx pictures, and kills it where it goes silent.

    Where (width, height) `size_px` is None, the child says it first, in two little-endian int32.
    """

    def __init__(self, spec: str, size_px: tuple[int, int] | None) -> None:
        self._spec, self._wished_px, self._size_px = spec, size_px, size_px
        self._process: subprocess.Popen[bytes] | None = None
        self._fd = -1
        self._patience_s = START_TIMEOUT_S
        self._said: IO[bytes] | None = None

    def command(self, fd: int) -> list[str]:
        """The program and its arguments; it writes into `fd`."""
        raise NotImplementedError

    def missing(self, program: str) -> SourceError:
        """The error where the program is not installed."""
        return SourceError(f"{self._spec} needs {program}, which is not installed")

    def ended(self, lines: list[str]) -> SourceError:
        """The error where the child ended; `lines` are what it said."""
        return TransientSourceError(f"{self._spec} ended: {lines[-1]}")

    def open(self) -> None:
        """Starts the child. Raises SourceError where its program is not installed."""
        read_fd, write_fd = os.pipe()
        self._fd, self._size_px, self._patience_s = read_fd, self._wished_px, START_TIMEOUT_S
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        command = self.command(write_fd)
        try:
            # the pictures have a pipe of their own: libraries write notes to stdout
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, pass_fds=(write_fd,)
            )
        except FileNotFoundError:
            raise self.missing(command[0]) from None
        finally:
            os.close(write_fd)
        with contextlib.suppress(OSError):  # fewer switches a picture; the system may forbid it
            fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def read(self) -> Picture | None:
        """The next picture. Raises TransientSourceError when the child ends or is silent for 3 s (6 s at the start)."""
        import cv2

        if self._size_px is None:
            head = np.empty(2, "<i4")
            self._fill(head.data.cast("B"))
            self._size_px = int(head[0]), int(head[1])
        width_px, height_px = self._size_px
        image: NDArray[np.uint8] = np.empty((height_px, width_px, 4), np.uint8)
        self._fill(image.data.cast("B"))
        self._patience_s = READ_TIMEOUT_S
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), np.uint8), None

    def _fill(self, room: memoryview) -> None:
        deadline_s = time.monotonic() + self._patience_s
        while room:
            if not select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                raise TransientSourceError(
                    f"{self._spec} gave no picture for {self._patience_s:.0f} s", code="source_timeout"
                )
            n = os.readv(self._fd, [room])
            if n == 0:
                assert self._said is not None
                self._said.seek(0)
                said = self._said.read().decode(errors="replace").splitlines()
                raise self.ended([line.strip() for line in said if line.strip()] or ["it said nothing"])
            room = room[n:]

    def close(self) -> None:
        """Ends the child, by force where it does not react."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(CLOSE_TIMEOUT_S)
        if self._said is not None:
            self._said.close()
