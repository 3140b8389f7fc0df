"""The books of a source: what was captured, and what became of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal, get_args

DropReason = Literal["superseded", "stale", "gated", "unchanged", "paced", "paused", "decode_error", "reconnect"]
DROP_REASONS: tuple[str, ...] = get_args(DropReason)


@dataclass(frozen=True)
class SourceCounts:
    """A consistent picture of the books: captured == processed + sum(dropped) + in_flight.

    `dropped` has one entry a reason that occurred. `audio_s` is sound handed on, in seconds;
    `audio_gaps` counts the gaps in it; `reconnects` counts how often the source came back.
    """

    captured: int = 0
    processed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    audio_s: float = 0.0
    audio_gaps: int = 0
    reconnects: int = 0


class Ledger:
    """Counts frames and sound from any thread.

    What is in flight is not counted but follows from the rest, under the same lock, so the sum
    holds at every moment. Settling a frame that is not in flight is a bug and raises ValueError.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = 0
        self._processed = 0
        self._dropped: dict[str, int] = {}
        self._audio_s = 0.0
        self._audio_gaps = 0
        self._reconnects = 0

    def captured(self) -> None:
        """One more frame left the source; it is in flight until it is settled."""
        with self._lock:
            self._captured += 1

    def processed(self, n: int = 1) -> None:
        """Settles n frames in flight: used by at least one inference."""
        with self._lock:
            self._check(n)
            self._processed += n

    def drop(self, reason: DropReason, n: int = 1) -> None:
        """Settles n frames in flight: dropped, and why."""
        if reason not in DROP_REASONS:
            raise ValueError(f"drop reason {reason!r} is not one of {', '.join(DROP_REASONS)}")
        with self._lock:
            self._check(n)
            self._dropped[reason] = self._dropped.get(reason, 0) + n

    def lost(self, reason: DropReason, n: int = 1) -> None:
        """n frames were captured and dropped in the same moment."""
        with self._lock:
            self._captured += n
            self._dropped[reason] = self._dropped.get(reason, 0) + n

    def audio(self, seconds: float) -> None:
        """Sound that was handed on."""
        with self._lock:
            self._audio_s += seconds

    def block(self, seconds: float, gap_s: float) -> None:
        """A block of sound that was handed on, and the gap before it where there is one."""
        self.audio(seconds)
        if gap_s:
            self.audio_gap()

    def audio_gap(self) -> None:
        """One gap in the sound."""
        with self._lock:
            self._audio_gaps += 1

    def reconnected(self) -> None:
        """The source came back after it was lost."""
        with self._lock:
            self._reconnects += 1

    def counts(self) -> SourceCounts:
        """All counts at one moment."""
        with self._lock:
            return SourceCounts(
                captured=self._captured,
                processed=self._processed,
                dropped=dict(self._dropped),
                in_flight=self._in_flight(),
                audio_s=self._audio_s,
                audio_gaps=self._audio_gaps,
                reconnects=self._reconnects,
            )

    def _in_flight(self) -> int:
        return self._captured - self._processed - sum(self._dropped.values())

    def _check(self, n: int) -> None:
        if not 0 <= n <= self._in_flight():
            raise ValueError(f"cannot settle {n} frames: {self._in_flight()} are in flight")
