"""A real pseudo-terminal with a program on it, and what a person would see there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import pyte


class Terminal:
    """Runs a program whose stderr, and unless `stdout` is given whose stdout, is a terminal of so many columns."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        columns: int,
        rows: int = 40,
        cwd: Path | None = None,
        environment: Mapping[str, str] = {},
        stdout: IO[Any] | None = None,
    ) -> None:
        self.raw = b""
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=inherited | {"TERM": "xterm-256color"} | environment, start_new_session=True,
            stdin=slave, stdout=stdout or slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        os.close(self._master)

    @property
    def text(self) -> str:
        """What stands on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def cursor_hidden(self) -> bool:
        """Whether the program took the cursor away."""
        with self._lock:
            return bool(self._screen.cursor.hidden)

    def ended(self, timeout_s: float = 60.0) -> int:
        """Waits for the program's end and for all that it wrote; its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._master, 65_536):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)
