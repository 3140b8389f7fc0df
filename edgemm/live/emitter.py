"""Stamps events and hands them to every sink without ever waiting for one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from edgemm.live.clock import Clock
from edgemm.live.events import RESULT_TYPES, ErrorEvent, Event, SummaryEvent
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome, Look, Packet
from edgemm.live.sinks.base import SinkQueue, as_edgemm_error
from edgemm.live.stats import RunStats

E = TypeVar("E", bound=Event)

PATIENCE_S = 30.0
REPEAT_S = 1.0


class Emitter:
    """The way out of a pipeline. `emit` stamps `id` and `t_s` under one lock, so events reach all
    queues in the order of their ids.

    With `wait` (as fast as possible: nothing is live) the caller waits for a full queue up to
    `PATIENCE_S`; otherwise a full queue loses its oldest item and the caller never waits. After
    the `summary` nothing goes out: it is the last event.
    """

    def __init__(self, clock: Clock, stats: RunStats, *, wait: bool = False) -> None:
        self._clock = clock
        self._stats = stats
        self._patience_s = PATIENCE_S if wait else 0.0
        self._lock = threading.Lock()
        self._queues: dict[str, SinkQueue] = {}
        self._latest: dict[str, Event] = {}
        self._reported: dict[str, float] = {}
        self._next_id = 0
        self._over = False

    def attach(self, name: str, queue: SinkQueue) -> None:
        """From now on `queue` receives everything it takes."""
        with self._lock:
            self._queues[name] = queue

    def emit(self, event: E) -> E:
        """Stamps the event, hands it out and returns it as it went out."""
        with self._lock:
            stamped = replace(event, id=self._next_id, t_s=self._clock.now_s())
            if self._over:
                return stamped
            self._over = isinstance(event, SummaryEvent)
            self._next_id += 1
            self._latest[stamped.type] = stamped
            for queue in self._queues.values():
                queue.put(stamped, self._patience_s)
        if stamped.type in RESULT_TYPES:
            self._stats.result(stamped.t_s)
        return stamped

    def report(self, error: Exception, what: str, source: str | None = None) -> None:
        """An `error` event for work that raised; the same message at most once in
        `REPEAT_S`, so that a task that fails on every frame does not flood the sinks."""
        known = as_edgemm_error(error, what)
        now_s = self._clock.now_s()
        with self._lock:
            if now_s - self._reported.get(known.message, -REPEAT_S) < REPEAT_S:
                return
            self._reported = {known.message: now_s}
        self.emit(ErrorEvent(source=source, code=known.code, message=known.message, hint=known.hint))

    def frame(self, frame: Frame) -> None:
        """Hands a frame to the sinks that show or record pictures."""
        self._hand_out(frame)

    def sound(self, block: AudioBlock) -> None:
        """Hands a block of sound to the sinks that record sound."""
        self._hand_out(block)

    def packet(self, packet: Packet) -> None:
        """Hands a picture as its source encodes it to the sinks that record such."""
        self._hand_out(packet)

    def outcome(self, frame: Frame, outcome: str, look: Look | None = None) -> None:
        """Tells the sinks that record packets what became of a frame."""
        with self._lock:
            wanted = any(queue.limits.packets for queue in self._queues.values())
        if not wanted:
            return
        at = (frame.source, frame.id, frame.t_capture_s, frame.t_media_s, frame.origin)
        self._hand_out(FrameOutcome(*at, outcome, look))

    def wants_frames(self) -> bool:
        """Whether any sink takes frames."""
        with self._lock:
            return any(queue.limits.frames for queue in self._queues.values())

    def latest(self, event_type: str) -> Event | None:
        """The last event of a type."""
        with self._lock:
            return self._latest.get(event_type)

    def dropped(self) -> dict[str, int]:
        """What slow sinks missed, by sink; only those that missed something."""
        with self._lock:
            return {name: queue.dropped for name, queue in self._queues.items() if queue.dropped}

    def _hand_out(self, item: Frame | AudioBlock | Packet | FrameOutcome) -> None:
        with self._lock:
            queues: Sequence[SinkQueue] = list(self._queues.values())
        for queue in queues:
            queue.put(item, self._patience_s)
