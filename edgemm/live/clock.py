"""The one clock of a pipeline: monotonic seconds, with wall time as an offset recorded once."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the clock was made. Every stamp of one pipeline comes from one clock.

    `wall_offset_s` added to a stamp gives Unix time. It is read once, so that a step of the
    machine's wall clock never moves two stamps of one run against each other.
    A replay is put on the clock of the run that it replays with `go_on`, before its sources open.
    """

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self.wall_offset_s = time.time()

    def now_s(self) -> float:
        """Seconds since the clock was made; never goes back."""
        return time.monotonic() - self._start_s

    def go_on(self, now_s: float) -> None:
        """Now is `now_s`."""
        self._start_s = time.monotonic() - now_s

    def from_monotonic_s(self, monotonic_s: float) -> float:
        """The stamp on this clock of a reading of `time.monotonic()`."""
        return monotonic_s - self._start_s
