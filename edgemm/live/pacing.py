"""The start of media time that all file sources of one pipeline share."""

from __future__ import annotations

import threading

from edgemm.live.clock import Clock

READY_TIMEOUT_S = 3.0


class Epoch:
    """Moment on the pipeline's clock at which media time 0 plays.

    Each file source joins when it is made and says `ready` when its first frame or sound is
    decoded. The epoch is set when all who joined are ready (or left), or `READY_TIMEOUT_S` after
    the first was: so sound and picture of one file stay in step, and none waits for ever.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._joined = 0
        self._ready = 0
        self._start_s: float | None = None

    def join(self) -> None:
        """Another file source will play."""
        with self._changed:
            self._joined += 1

    def leave(self) -> None:
        """A source that joined will never be ready."""
        with self._changed:
            self._joined -= 1
            self._settle()

    def ready(self, stop: threading.Event | None = None) -> float:
        """Waits for the others and returns the epoch in seconds on the pipeline's clock."""
        with self._changed:
            self._ready += 1
            self._settle()
            deadline_s = self._clock.now_s() + READY_TIMEOUT_S
            while self._start_s is None:
                left_s = deadline_s - self._clock.now_s()
                if left_s <= 0 or (stop is not None and stop.is_set()):
                    self._set()
                    break
                self._changed.wait(min(left_s, 0.1))
            assert self._start_s is not None
            return self._start_s

    @property
    def start_s(self) -> float | None:
        """The epoch, or None while it is not set."""
        return self._start_s

    def _settle(self) -> None:
        if self._start_s is None and self._ready and self._ready >= self._joined:
            self._set()

    def _set(self) -> None:
        self._start_s = self._clock.now_s()
        self._changed.notify_all()
