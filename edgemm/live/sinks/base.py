"""What a sink is, and the thread and the bounded queue that stand before it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from edgemm.errors import EdgemmError, StorageError
from edgemm.live.events import Event
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome, Packet

Item = Event | Frame | AudioBlock | Packet | FrameOutcome


@dataclass(frozen=True)
class SinkContext:
    """What a sink may need of its pipeline. `has_sound` and `has_picture` say which inputs the run
    has; with `media_time` (as fast as possible) sources are not played in real time, so media
    time counts and not the clock. `stop` ends the run and returns at once.

    `report` makes an `error` event of what a sink lived through, from any thread, at once. `ask` is
    the pipeline's, None where it cannot answer. `closing` says that nothing more will be put, and
    `patient(False)` that nobody shall wait for this sink (its other end is away). `stopping` says that the run is being
    broken off. A sink that speaks says so with `talking(True, mute)`, and with False when it is silent: with `mute` the
    microphone is not listened to meanwhile. `tasks` are what the run does; `switch(task, on)` stops and resumes
    one that looks at pictures (False: it cannot be). `scaled` says that pictures are looked at in another size than
    their sources give them."""

    has_picture: bool
    has_sound: bool
    media_time: bool
    wall_offset_s: float
    stop: Callable[[], None]
    epoch_s: Callable[[], float | None] = lambda: None
    report: Callable[[EdgemmError], None] = lambda error: None
    ask: Callable[[str], int] | None = None
    closing: Callable[[], bool] = lambda: False
    patient: Callable[[bool], None] = lambda patient: None
    stopping: Callable[[], bool] = lambda: False
    talking: Callable[[bool, bool], None] = lambda on, mute: None
    tasks: tuple[str, ...] = ()
    switch: Callable[[str, bool], bool] = lambda task, on: False
    scaled: bool = False


@dataclass(frozen=True)
class SinkLimits:
    """How many items may wait before a sink; 0: it does not take that kind. When a kind is full its
    oldest item is dropped and counted. `packets` are pictures as their sources encode them, and what became of each
    frame; asking for them makes the sources keep them. Of the event types in `latest` only the newest waits; the
    ones that it replaces are not counted."""

    events: int = 4096
    frames: int = 0
    blocks: int = 0
    packets: int = 0
    latest: frozenset[str] = frozenset()


class Sink(Protocol):
    """Takes events, frames and sound in order, in one thread that is the sink's own.

    `open` is called before the first item, `close` after the last one, even if `handle` raised.
    A sink that raises is closed. If it is `essential` (a recording that the user asked for) the
    run ends with its error, otherwise an `error` event says so and the run goes on.
    """

    name: str
    essential: bool
    limits: SinkLimits

    def open(self, context: SinkContext) -> None: ...
    def handle(self, item: Item) -> None: ...
    def close(self) -> None: ...


def _kind(item: Item) -> int:
    kinds = (Event, Frame, AudioBlock)
    return next((number for number, kind in enumerate(kinds) if isinstance(item, kind)), len(kinds))


class SinkQueue:
    """Items of four kinds, taken in the order in which they were put; each kind is bounded.

    Nobody waits for a queue that is not `patient`, whatever the caller allows.
    """

    def __init__(self, limits: SinkLimits) -> None:
        self.limits = limits
        self._limits = (limits.events, limits.frames, limits.blocks, limits.packets)
        self._changed = threading.Condition()
        self._items: tuple[deque[tuple[int, Item]], ...] = (deque(), deque(), deque(), deque())
        self._sequence = 0
        self._closed = False
        self.dropped = 0
        self.patient = True

    def takes(self, item: Item) -> bool:
        """Whether items of this kind are wanted at all."""
        return self._limits[_kind(item)] > 0

    def put(self, item: Item, wait_s: float = 0.0) -> None:
        """Adds an item. If its kind is full, waits up to `wait_s`, then drops the oldest one."""
        kind = _kind(item)
        limit = self._limits[kind]
        if not limit:
            return
        with self._changed:
            waiting = self._items[kind]
            if isinstance(item, Event) and item.type in self.limits.latest:
                self._forget(item.type)
            if self.patient and wait_s > 0 and len(waiting) >= limit:
                self._changed.wait_for(lambda: self._closed or not self.patient or len(waiting) < limit, wait_s)
            if self._closed:
                return
            if len(waiting) >= limit:
                waiting.popleft()
                self.dropped += 1
            waiting.append((self._sequence, item))
            self._sequence += 1
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> Item | None:
        """The next item, or None when the queue is closed and empty, or after `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._waiting(), timeout_s):
                return None
            heads = [queue for queue in self._items if queue]
            if not heads:
                return None
            item = min(heads, key=lambda queue: queue[0][0]).popleft()[1]
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Nothing more is put; what waits can still be taken unless it is discarded."""
        with self._changed:
            self._closed = True
            if discard:
                for queue in self._items:
                    queue.clear()
            self._changed.notify_all()

    def be_patient(self, patient: bool) -> None:
        """Whether a caller may wait from now on; those who do are let go."""
        with self._changed:
            self.patient = patient
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Nothing more will be put."""
        return self._closed

    @property
    def empty(self) -> bool:
        """Nothing waits."""
        with self._changed:
            return not self._waiting()

    def _waiting(self) -> bool:
        return any(self._items)

    def _forget(self, event_type: str) -> None:
        events = self._items[0]
        for index, (_, item) in enumerate(events):
            if isinstance(item, Event) and item.type == event_type:
                del events[index]
                return


class SinkRunner:
    """One sink with its queue and its thread."""

    def __init__(
        self,
        sink: Sink,
        context: SinkContext,
        on_failure: Callable[[Sink, EdgemmError], None],
    ) -> None:
        self.sink = sink
        self.queue = SinkQueue(sink.limits)
        self._context = replace(context, closing=lambda: self.queue.closed, patient=self.queue.be_patient)
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name=f"edgemm-{sink.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread; the sink is opened in it."""
        self._thread.start()

    def finish(self, deadline_s: float) -> bool:
        """Lets the sink work off what waits until `deadline_s` (of `time.monotonic()`), discards
        the rest, and says whether its thread ended."""
        self.queue.close()
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            self.queue.close(discard=True)
            self._thread.join(0.2)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            try:
                self.sink.open(self._context)
                while (item := self.queue.get()) is not None:
                    self.sink.handle(item)
            finally:
                self.queue.close(discard=True)
                self.sink.close()
        except Exception as error:  # a sink must not take the pipeline with it
            self._on_failure(self.sink, as_edgemm_error(error, self.sink.name))


def as_edgemm_error(error: Exception, what: str) -> EdgemmError:
    """The error itself if it is one of edgemm's own, else one that says where it came from."""
    if isinstance(error, EdgemmError):
        return error
    if isinstance(error, OSError):
        return StorageError(f"{what} cannot be written: {error.strerror or error}")
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return EdgemmError(f"{what} failed: {type(error).__name__}: {detail}")
