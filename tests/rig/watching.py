"""Helpers of the capture tests: a taker in a thread, and the statuses with their times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgemm.live.capture import VideoCapture
from edgemm.live.clock import Clock
from edgemm.live.frames import Frame
from edgemm.live.ledger import SourceCounts
from edgemm.live.pacing import Epoch


@dataclass
class Watch:
    """What a pipeline would see of a capture."""

    clock: Clock = field(default_factory=Clock)
    statuses: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.epoch = Epoch(self.clock)

    def on_status(self, name: str, state: str, reason: str) -> None:
        self.statuses.append((self.clock.now_s(), state, reason))

    def states(self) -> list[str]:
        return [state for _, state, _ in self.statuses]

    def wait_for(self, state: str, after_s: float = 0.0, timeout_s: float = 10.0) -> float:
        """The moment of the first such status later than `after_s`."""

        def found() -> list[float]:
            return [t_s for t_s, what, _ in list(self.statuses) if what == state and t_s > after_s]

        wait_until(lambda: bool(found()), timeout_s, lambda: f"{state}: {self.statuses}")
        return found()[0]


class Taker:
    """Takes and settles frames in a thread; keeps when each came."""

    def __init__(self, capture: VideoCapture, *, work_s: float = 0.0) -> None:
        self._capture, self._work_s = capture, work_s
        self.frames: list[Frame] = []
        self.taken_s: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Taker:
        self._capture.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._capture.stop()

    def join(self) -> None:
        """Until the source has ended."""
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set() and not self._capture.ended:
            frame = self._capture.take(0.05)
            if frame is not None:
                self.frames.append(frame)
                self.taken_s.append(time.monotonic())
                time.sleep(self._work_s)
                self._capture.ledger.processed()


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0, say: Callable[[], str] = lambda: "never") -> None:
    """Until it holds; AssertionError after the time-out."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, say()
        time.sleep(0.005)


def balanced(counts: SourceCounts) -> bool:
    """Whether the books are right."""
    settled = counts.processed + sum(counts.dropped.values())
    return counts.captured == settled + counts.in_flight and counts.in_flight >= 0
