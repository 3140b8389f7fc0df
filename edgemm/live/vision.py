"""The vision worker: takes the newest frame of each camera and runs what is wanted on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import (
    AnswerDeltaEvent,
    AnswerEvent,
    DetectionsEvent,
    InterruptedEvent,
    LabelsEvent,
    TrackedObject,
)
from edgemm.live.frames import Frame
from edgemm.live.ledger import Ledger
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.push import PushVideo
from edgemm.live.stats import RunStats
from edgemm.live.tracking import Tracker

_IDLE_S = 0.1
_POLL_S = 0.002
_LONGEST_INTERVAL_S = 1 / 15
_EVERY_LABEL = 1 << 20
_OBJECT_SCORE_MIN = 0.5


class FrameSource(Protocol):
    """The part of a video capture that the worker uses."""

    name: str
    ledger: Ledger

    def take(self, timeout_s: float) -> Frame | None: ...
    @property
    def ended(self) -> bool: ...


@dataclass(frozen=True)
class Question:
    """A question that waits for its frame."""

    id: int
    text: str


class _Stopped(Exception):
    """Raised inside the model's own loop to make it let go."""


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
        if self._due_s is None:
            self._due_s = t_s
        if t_s < self._due_s - 1e-3:
            return False
        behind = int((t_s - self._due_s) / self._every_s)
        self._due_s += (behind + 1) * self._every_s
        return True


class Freshness:
    """Tells whether the next frame is nearer than this one.

    A frame that waited for a busy model for more than half of its camera's interval is stale:
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
            interval_s is not None and interval_s <= _LONGEST_INTERVAL_S and now_s - frame.t_capture_s > interval_s / 2
        )
        self._skipped = old and not self._skipped
        return self._skipped


class VisionWorker:
    """Runs in one thread until its sources end or `stop` is set.

    Every frame it takes is settled exactly once: `processed` if a model saw it, else dropped as
    `paced`, `gated` (no task wants it) or `stale` (it waited too long, its task raised or was
    cut off). Sinks get a frame after the results about it, so what is drawn on it belongs to it.
    """

    def __init__(
        self,
        model: LiveModel,
        sources: Sequence[FrameSource],
        tasks: Sequence[str],
        options: StreamOptions,
        *,
        clock: Clock,
        emitter: Emitter,
        stats: RunStats,
        stop: threading.Event,
        on_enough: Callable[[], None],
    ) -> None:
        self._model, self._tasks, self._options = model, tasks, options
        self._sources = list(sources)
        self._clock, self._emitter, self._stats = clock, emitter, stats
        self._stop, self._on_enough = stop, on_enough
        self._pacers = {source.name: Pacer(options.every_s) for source in sources}
        self._fresh = {
            source.name: Freshness()
            for source in sources
            if not (options.as_fast_as_possible or isinstance(source, PushVideo))
        }
        self._trackers = {source.name: Tracker() for source in sources}
        self._questions: deque[Question] = deque()
        self._processed = 0
        self._looks = {"classify": self._classify, "detect": self._detect}

    def ask(self, question: Question) -> None:
        """Queues a question for the next frame; safe from any thread."""
        self._questions.append(question)

    def run(self) -> None:
        """The thread's body."""
        while not self._stop.is_set():
            taken = self._take()
            if taken is None:
                if all(source.ended for source in self._sources):
                    return
                continue
            source, frame = taken
            self._look(source, frame)
            if self._options.max_frames and self._processed >= self._options.max_frames:
                self._on_enough()
                return

    def _take(self) -> tuple[FrameSource, Frame] | None:
        """The newest frame of the first source that has one; the sources take turns."""
        if len(self._sources) == 1:
            return self._take_from(self._sources[0], _IDLE_S)
        for turn in range(len(self._sources)):
            taken = self._take_from(self._sources[turn], 0.0)
            if taken:
                self._sources = self._sources[turn + 1 :] + self._sources[: turn + 1]
                return taken
        self._stop.wait(_POLL_S)
        return None

    def _take_from(self, source: FrameSource, wait_s: float) -> tuple[FrameSource, Frame] | None:
        frame = source.take(wait_s)
        if frame is None:
            return None
        now_s = self._clock.now_s()
        fresh = self._fresh.get(source.name)
        if fresh is not None and fresh.stale(frame, now_s):
            source.ledger.drop("stale")
            return None
        self._stats.stage("take", 1e3 * (now_s - frame.t_capture_s))
        return source, frame

    def _look(self, source: FrameSource, frame: Frame) -> None:
        if self._past_the_end(frame):
            source.ledger.drop("gated")
            self._on_enough()
            return
        if not self._pacers[source.name].due(self._time_of(frame)):
            source.ledger.drop("paced")
            self._emitter.frame(frame)
            return
        wanted = [look for task, look in self._looks.items() if task in self._tasks]
        asked = bool(self._questions)
        if not (wanted or asked):
            source.ledger.drop("gated")
            self._emitter.frame(frame)
            return
        seen = any([look(frame) for look in wanted])  # noqa: C419 (each one looks)
        self._emitter.frame(frame)
        seen = (asked and self._answer(frame)) or seen
        self._settle(source, seen)

    def _settle(self, source: FrameSource, seen: bool) -> None:
        if seen:
            source.ledger.processed()
            self._processed += 1
        else:
            source.ledger.drop("stale")

    def _time_of(self, frame: Frame) -> float:
        if self._options.as_fast_as_possible and frame.t_media_s is not None:
            return frame.t_media_s
        return frame.t_capture_s

    def _past_the_end(self, frame: Frame) -> bool:
        limit_s = self._options.duration_s
        if limit_s is None or not self._options.as_fast_as_possible:
            return False
        return frame.t_media_s is not None and frame.t_media_s >= limit_s

    def _classify(self, frame: Frame) -> bool:
        began_s, wanted = self._clock.now_s(), self._options.labels
        try:
            result = self._model.classify(frame.image, top=self._options.top if wanted is None else _EVERY_LABEL)
        except Exception as error:  # a task that raises must not end the run
            self._emitter.report(error, "classify", frame.source)
            return False
        now_s = self._clock.now_s()
        latency_ms = 1e3 * (now_s - frame.t_capture_s)
        told = (item for item in result.labels if item.score >= self._options.score_min)
        kept = tuple(item for item in told if wanted is None or item.label in wanted)[: self._options.top]
        event = LabelsEvent(
            source=frame.source,
            labels=kept,
            frame=frame.id,
            t_capture_s=frame.t_capture_s,
            model_ms=result.model_ms,
            latency_ms=latency_ms,
        )
        self._emit(event, "classify", began_s, now_s)
        return True

    def _detect(self, frame: Frame) -> bool:
        began_s, wanted = self._clock.now_s(), self._options.labels
        try:
            result = self._model.detect(frame.image, score_min=self._options.score_min or _OBJECT_SCORE_MIN)
        except Exception as error:
            self._emitter.report(error, "detect", frame.source)
            return False
        now_s = self._clock.now_s()
        told = [item for item in result.objects if wanted is None or item.label in wanted]
        numbers = self._trackers[frame.source].update(told)
        event = DetectionsEvent(
            source=frame.source,
            objects=tuple(
                TrackedObject(item.label, item.score, item.box_px, number)
                for item, number in zip(told, numbers, strict=True)
            ),
            frame=frame.id,
            t_capture_s=frame.t_capture_s,
            model_ms=result.model_ms,
            latency_ms=1e3 * (now_s - frame.t_capture_s),
        )
        self._emit(event, "detect", began_s, now_s)
        return True

    def _emit(self, event: LabelsEvent | DetectionsEvent, task: str, began_s: float, now_s: float) -> None:
        """Emits what was seen in a frame, and counts its times."""
        out_s = self._emitter.emit(event).t_s
        self._stats.frame_result(1e3 * (out_s - event.t_capture_s), event.model_ms)
        self._stats.stage(task, 1e3 * (now_s - began_s))
        self._stats.stage("emit", 1e3 * (out_s - now_s))

    def _answer(self, frame: Frame) -> bool:
        question = self._questions.popleft()
        began_s = self._clock.now_s()
        try:
            result = self._model.answer(
                [frame.image],
                question.text,
                max_new_tokens=self._options.max_new_tokens,
                on_text=lambda text: self._delta(frame, question, text),
            )
        except _Stopped:
            self._emitter.emit(InterruptedEvent(source=frame.source, what="answer"))
            return False
        except Exception as error:
            self._emitter.report(error, "answer", frame.source)
            return False
        now_s = self._clock.now_s()
        self._emitter.emit(
            AnswerEvent(
                source=frame.source,
                question_id=question.id,
                question=question.text,
                text=result.text,
                frames=(frame.id,),
                t_capture_s=frame.t_capture_s,
                ttft_ms=result.ttft_ms,
                model_ms=result.model_ms,
                latency_ms=1e3 * (now_s - frame.t_capture_s),
            )
        )
        self._stats.stage("answer", 1e3 * (now_s - began_s))
        return True

    def _delta(self, frame: Frame, question: Question, text: str) -> None:
        if self._stop.is_set():
            raise _Stopped
        now_s = self._clock.now_s()
        self._emitter.emit(
            AnswerDeltaEvent(
                source=frame.source,
                question_id=question.id,
                question=question.text,
                text=text,
                frames=(frame.id,),
                t_capture_s=frame.t_capture_s,
                latency_ms=1e3 * (now_s - frame.t_capture_s),
            )
        )
