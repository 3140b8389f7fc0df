"""What is due when: the start of media time that file sources share, beats, freshness, the window."""

from __future__ import annotations

import threading
from collections import deque

from edgemm.live.clock import Clock
from edgemm.live.frames import Frame

READY_TIMEOUT_S = 3.0

_STALE = 0.4
_LONGEST_INTERVAL_S = 1 / 15


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


class Pacer:
    """Lets one frame through every `every_s` seconds, on a fixed beat: a late frame does not
    delay the ones after it."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due_s: float | None = None

    def due(self, t_s: float) -> bool:
        """Whether the frame of this moment is to be looked at."""
        if not self._every_s:
            return True
        if self._due_s is None or t_s < self._due_s - self._every_s:  # the first, or time went back
            self._due_s = t_s
        if t_s < self._due_s - 1e-3:
            return False
        behind = int((t_s - self._due_s) / self._every_s)
        self._due_s += (behind + 1) * self._every_s
        return True


class Freshness:
    """Tells whether the next frame is nearer than this one.

    A frame that waited for a busy model for more than `_STALE` of its camera's interval is stale:
    the next one is due sooner than that, and a result about it is a newer truth. Never two in a
    row, and only where frames come at 15 a second or more.
    """

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._interval_s: float | None = None
        self._skipped = False

    def stale(self, frame: Frame, now_s: float) -> bool:
        """Whether to wait for the next frame instead."""
        last, self._last = self._last, frame
        if last is not None and frame.id > last.id:
            new_s = (frame.t_capture_s - last.t_capture_s) / (frame.id - last.id)
            old_s = new_s if self._interval_s is None else self._interval_s
            self._interval_s = 0.8 * old_s + 0.2 * new_s
        interval_s = self._interval_s
        old = (
            interval_s is not None
            and interval_s <= _LONGEST_INTERVAL_S
            and now_s - frame.t_capture_s > _STALE * interval_s
        )
        self._skipped = old and not self._skipped
        return self._skipped


class Window:
    """The newest frames of one source, `fps` of them a second."""

    def __init__(self, frames: int, fps: float) -> None:
        self._pacer = Pacer(1 / fps)
        self._frames: deque[tuple[Frame, float]] = deque(maxlen=frames)

    def due(self, t_s: float) -> bool:
        """Whether the frame of this moment is to be kept."""
        if self._frames and t_s < self._frames[-1][1]:  # stamps of pushed frames went back: another scene
            self._frames.clear()
        return self._pacer.due(t_s)

    def add(self, frame: Frame, t_s: float) -> None:
        """Keeps the frame of this moment."""
        if self._frames and t_s < self._frames[-1][1]:
            self._frames.clear()
        self._frames.append((frame, t_s))

    @property
    def shown(self) -> list[tuple[Frame, float]]:
        """The frames, oldest first, each with its time in seconds."""
        return list(self._frames)
