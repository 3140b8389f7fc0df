"""`edgemm.stream`: the live pipeline inside a program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import UsageError
from edgemm.live.events import EVENT_TYPES, Event, SummaryEvent
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import Sink, SinkLimits, SinkQueue

WAITING_EVENTS = 4096


class Stream:
    """A running pipeline: a context manager, and an iterator of its events (also `async for`).

    It starts when it is made. Iteration ends after the `summary` event and raises what ended the
    run, if that was an error. Inference never waits for the iterating thread: at most
    `WAITING_EVENTS` wait, then the oldest are dropped and counted in `stats.sinks_dropped` (as fast
    as possible, the pipeline waits for a loop that is running). Leaving the context stops the run
    within a second. Threads are daemons; no signal handler is touched.
    """

    def __init__(self, model: LiveModel, options: StreamOptions, sinks: Sequence[Sink | str] = ()) -> None:
        self._pipeline = Pipeline(model, options, sinks)
        self._queue = SinkQueue(SinkLimits(events=WAITING_EVENTS))
        self._queue.patient = False
        self._pipeline.attach("iterator", self._queue)
        self._pipeline.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Event]:
        """The events from here on, in order, until the run is over."""
        self._queue.patient = True
        try:
            while True:
                event = self._queue.get(0.1)
                if event is not None:
                    assert isinstance(event, Event)
                    yield event
                elif self._pipeline.over and self._queue.empty:
                    break
        finally:
            self._queue.patient = False
        if self._pipeline.failure is not None:
            raise self._pipeline.failure

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The same for asyncio: the event loop is never blocked."""
        events = iter(self)
        done = object()
        try:
            while (event := await asyncio.to_thread(next, events, done)) is not done:
                assert isinstance(event, Event)
                yield event
        finally:
            self._queue.patient = False

    @property
    def now_s(self) -> float:
        """Now on the pipeline's clock, for `push_frame(t_capture_s=)`."""
        return self._pipeline.clock.now_s()

    def latest(self, event_type: str, max_age_s: float | None = None) -> Event | None:
        """The last event of a type (such as "labels"), or None if there is none or it is older
        than `max_age_s`. Never waits. Raises UsageError for an unknown type."""
        if event_type not in EVENT_TYPES:
            raise UsageError(f"no event is called {event_type!r}", hint=f"there are: {', '.join(EVENT_TYPES)}")
        return self._pipeline.latest(event_type, max_age_s)

    def ask(self, question: str) -> int:
        """Asks about the next frame; the id is the `question_id` of the `answer` event.
        Raises TaskUnavailable if the bundle cannot answer."""
        return self._pipeline.ask(question)

    def push_frame(self, image: NDArray[np.uint8], *, t_capture_s: float | None = None) -> int:
        """Gives the stream a frame, uint8 [H, W, 3] RGB, which must not be changed afterwards.
        Returns its id. Never waits; the newest frame wins. Raises UsageError if the stream reads
        a camera."""
        source = self._pipeline.inputs.push_video
        if source is None:
            raise UsageError("this stream reads a camera of its own", hint="leave camera out")
        return source.push(image, t_capture_s)

    def push_audio(self, samples: NDArray[np.float32], *, sample_rate_hz: int = 16_000) -> None:
        """Gives the stream sound, float32 [samples] in -1…1, mono, recorded until now. Raises
        UsageError if the stream has a microphone of its own (mic="none" disables both)."""
        source = self._pipeline.inputs.push_audio
        if source is None:
            raise UsageError("this stream takes no pushed sound", hint="leave mic out")
        source.push(samples, sample_rate_hz)

    def end_input(self) -> None:
        """No more will be pushed: what was pushed is worked off, then the run ends."""
        self._pipeline.inputs.end_pushed(force=True)

    def wait(self) -> SummaryEvent:
        """Blocks until the run is over and returns its summary; raises what ended it."""
        return self._pipeline.wait()

    def stop(self) -> None:
        """Ends the run within a second; does nothing when it is over."""
        self._pipeline.stop()


def stream(
    model: LiveModel,
    *,
    camera: str | int | Sequence[str] | None = None,
    mic: str | None = None,
    sinks: Sequence[Sink | str] = (),
    **options: Any,
) -> Stream:
    """Runs a model live and returns the running stream.

    `camera` and `mic` take what `--camera` and `--mic` take (several cameras: a sequence); what is
    left out can be pushed, and with a single file as camera its own sound is used. `sinks` are
    objects of your own, or URLs as `--sink` takes them. `options` are
    the fields of StreamOptions. Raises UsageError, TaskUnavailable, SourceError.
    """
    if camera is None:
        cameras: tuple[str, ...] = ()
    elif isinstance(camera, (str, int)):
        cameras = (str(camera),)
    else:
        cameras = tuple(str(item) for item in camera)
    return Stream(model, StreamOptions(cameras=cameras, mic=mic, push=True, **options), sinks)
