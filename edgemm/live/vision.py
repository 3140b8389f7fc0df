"""The vision worker: takes the newest frame of each camera and runs what is wanted on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from edgemm.live.answering import Answering, Question
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import (
    CaptionEvent,
    DescriptionEvent,
    DetectionsEvent,
    ErrorEvent,
    LabelsEvent,
    TrackedObject,
)
from edgemm.live.frames import Frame, Look
from edgemm.live.gate import ChangeGate
from edgemm.live.ledger import DropReason, Ledger
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.pacing import Freshness, Pacer, Window
from edgemm.live.push import PushVideo
from edgemm.live.stats import RunStats
from edgemm.live.tracking import Tracker

STUCK_S = 30.0

_IDLE_S = 0.1
_POLL_S = 0.002
_EVERY_LABEL = 1 << 20
_OBJECT_SCORE_MIN = 0.5


class FrameSource(Protocol):
    """The part of a video capture that the worker uses."""

    name: str
    ledger: Ledger

    def take(self, timeout_s: float) -> Frame | None: ...
    @property
    def ended(self) -> bool: ...


class VisionWorker:
    """Runs in one thread until its sources end or `stop` is set.

    Every frame it takes is settled exactly once: `processed` if a model saw it, else dropped as
    `paced`, `unchanged`, `gated` (no task wants it), `paused` (a task that would is off) or `stale` (it
    waited too long, its task raised or was cut off). Sinks get a frame after the results about it, so
    what is drawn on it belongs to it.
    A frame that is replayed is looked at as it was: by the same tasks, and by those of now that were not among the
    `replayed_tasks`.
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
        replayed_tasks: Sequence[str] | None = None,
    ) -> None:
        self._model, self._tasks, self._options = model, tasks, options
        self._sources = list(sources)
        self._clock, self._emitter, self._stats = clock, emitter, stats
        self._stop, self._on_enough = stop, on_enough
        self._replayed_tasks = replayed_tasks
        self._pacers = {source.name: Pacer(options.every_s) for source in sources}
        self._gates = {source.name: ChangeGate() for source in sources} if options.on_change else {}
        self._fresh = {
            source.name: Freshness()
            for source in sources
            if not (options.as_fast_as_possible or replayed_tasks is not None or isinstance(source, PushVideo))
        }
        self._trackers = {source.name: Tracker() for source in sources}
        self._windows = {source.name: Window(options.window, options.window_fps) for source in sources}
        self.answering = Answering(model, options.max_new_tokens, clock=clock, emitter=emitter, stats=stats, stop=stop)
        self._processed = 0
        self._model_ms = 0.0  # of all that was done with the frame at hand
        self._looking: tuple[str, float] | None = None
        self._told_stuck: tuple[str, float] | None = None
        self._looks = {
            "classify": self._classify,
            "detect": self._detect,
            "caption": self._caption,
            "describe": self._describe,
        }
        self._off: frozenset[str] = frozenset()

    def run(self) -> None:
        """The thread's body."""
        while not self._stop.is_set():
            taken = self._take()
            if taken is None:
                if all(source.ended for source in self._sources):
                    return
                continue
            source, frame = taken
            self._looking = (source.name, self._clock.now_s())
            self._look(source, frame)
            self._looking = None
            if self._options.max_frames and self._processed >= self._options.max_frames:
                self._on_enough()
                return

    def switch(self, task: str, on: bool) -> bool:
        """Whether a task looks at frames from now on; False if it never does. Safe from any thread."""
        if task not in self._tasks or task not in (*self._looks, "describe"):
            return False
        self._off = self._off - {task} if on else self._off | {task}
        return True

    def report_stuck(self) -> None:
        """Emits one `error` event where the model has been at one frame for `STUCK_S`; called from another thread."""
        looking = self._looking
        if looking is None or looking is self._told_stuck or self._clock.now_s() - looking[1] < STUCK_S:
            return
        self._told_stuck = looking
        self._emitter.emit(
            ErrorEvent(
                source=looking[0],
                code="stuck",
                message=f"the model has been at one frame for {STUCK_S:.0f} s",
                hint="it may hang: end the run, and try another --runtime or --task",
            )
        )

    def _take(self) -> tuple[FrameSource, Frame] | None:
        """The newest frame of the source that was served longest ago, of those that have one."""
        if len(self._sources) == 1:
            return self._take_from(self._sources[0], _IDLE_S)
        for source in list(self._sources):
            taken = self._take_from(source, 0.0)
            if taken:
                self._sources.remove(source)
                self._sources.append(source)
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
            self._drop(source, frame, "stale")
            return None
        self._stats.stage("take", frame.age_ms(now_s))
        return source, frame

    def _look(self, source: FrameSource, frame: Frame) -> None:
        if self._past_the_end(frame):
            self._drop(source, frame, "gated")
            self._on_enough()
            return
        look = frame.look or Look(t_s=self._time_of(frame))
        gate = self._gates.get(source.name) if frame.look is None else None
        changed = gate is None or gate.changed(frame.image, look.t_s)
        if changed and frame.look is None and not self._pacers[source.name].due(look.t_s):
            self._pass_over(source, frame, "paced")
            return
        tasks, why_not = self._due(source, look, changed) if frame.look is None else self._as_before(look)
        if gate is not None and tasks:
            gate.looked()
        questions = self._questions(look)
        if not (tasks or questions):
            self._pass_over(source, frame, why_not)
            return
        frame = replace(frame, look=replace(look, tasks=tuple(tasks)))
        if "describe" in tasks:
            self._windows[source.name].add(frame, look.t_s)
        self._model_ms = 0.0
        seen = [self._looks[task](frame) for task in tasks]
        self._emitter.frame(frame)
        answered = [(question, self.answering.answer(frame, question)) for question in questions]
        asked = tuple((question.id, question.text) for question, done in answered if done is not None)
        seen += [bool(done) for _, done in answered]
        self._settle(source, replace(frame, look=Look(tuple(tasks), asked, look.t_s)), any(seen))

    def _does(self, task: str) -> bool:
        return task in self._tasks and task not in self._off

    def _due(self, source: FrameSource, look: Look, changed: bool) -> tuple[list[str], DropReason]:
        """The tasks that look at a frame of this moment, and why none does."""
        if not changed:
            return [], "unchanged"
        describes = self._does("describe") and self._windows[source.name].due(look.t_s)
        tasks = [task for task in self._looks if self._does(task) and (task != "describe" or describes)]
        return tasks, "paced" if self._does("describe") else "paused" if self._off else "gated"

    def _as_before(self, look: Look) -> tuple[list[str], DropReason]:
        """The tasks that look at a frame that is replayed."""
        before = self._replayed_tasks or ()
        tasks = [t for t in self._looks if self._does(t) and (t in look.tasks or t not in before)]
        return tasks, "gated" if look.tasks or look.questions else "stale"

    def _questions(self, look: Look) -> list[Question]:
        """The questions that are answered over this frame: those of a replay, and one that waits."""
        again = [Question(*question) for question in look.questions] if "answer" in self._tasks else []
        waiting = self.answering.next()
        return again if waiting is None else [*again, waiting]

    def _settle(self, source: FrameSource, frame: Frame, seen: bool) -> None:
        if seen:
            source.ledger.processed()
            self._processed += 1
            self._emitter.outcome(frame, "processed", frame.look)
        else:
            self._drop(source, frame, "stale")

    def _pass_over(self, source: FrameSource, frame: Frame, reason: DropReason) -> None:
        self._drop(source, frame, reason)
        self._emitter.frame(frame)

    def _drop(self, source: FrameSource, frame: Frame, reason: DropReason) -> None:
        source.ledger.drop(reason)
        self._emitter.outcome(frame, reason, frame.look)

    def _time_of(self, frame: Frame) -> float:
        if self._options.as_fast_as_possible and frame.t_media_s is not None:
            return frame.t_media_s
        return frame.t_capture_s

    def _past_the_end(self, frame: Frame) -> bool:
        limit_s = self._options.duration_s
        if limit_s is None or not self._options.as_fast_as_possible or frame.look is not None:
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
        told = (item for item in result.labels if item.score >= self._options.score_min)
        kept = tuple(item for item in told if wanted is None or item.label in wanted)[: self._options.top]
        event = LabelsEvent(
            source=frame.source,
            labels=kept,
            frame=frame.id,
            t_capture_s=frame.t_capture_s,
            model_ms=result.model_ms,
            latency_ms=frame.age_ms(now_s),
        )
        self._emit(event, frame, "classify", began_s, now_s)
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
            latency_ms=frame.age_ms(now_s),
        )
        self._emit(event, frame, "detect", began_s, now_s)
        return True

    def _caption(self, frame: Frame) -> bool:
        began_s = self._clock.now_s()
        try:
            result = self._model.caption(frame.image, max_new_tokens=self._options.max_new_tokens)
        except Exception as error:
            self._emitter.report(error, "caption", frame.source)
            return False
        now_s = self._clock.now_s()
        event = CaptionEvent(
            source=frame.source,
            text=result.text,
            confidence=result.confidence,
            frames=(frame.id,),
            t_capture_s=frame.t_capture_s,
            model_ms=result.model_ms,
            latency_ms=frame.age_ms(now_s),
        )
        self._emit(event, frame, "caption", began_s, now_s)
        return True

    def _describe(self, frame: Frame) -> bool:
        """What the window shows that this frame is the newest of. One frame alone waits for the next."""
        shown = self._windows[frame.source].shown
        if len(shown) < 2:
            return True
        began_s = self._clock.now_s()
        images, times_s = [f.image for f, _ in shown], [t_s for _, t_s in shown]
        try:
            result = self._model.describe(images, times_s, max_new_tokens=self._options.max_new_tokens)
        except Exception as error:
            self._emitter.report(error, "describe", frame.source)
            return False
        self._emitter.emit(
            DescriptionEvent(
                source=frame.source,
                text=result.text,
                t_start_s=times_s[0],
                t_end_s=times_s[-1],
                frames=tuple(f.id for f, _ in shown),
            )
        )
        self._stats.stage("describe", 1e3 * (self._clock.now_s() - began_s))
        return True

    def _emit(
        self,
        event: LabelsEvent | DetectionsEvent | CaptionEvent,
        frame: Frame,
        task: str,
        began_s: float,
        now_s: float,
    ) -> None:
        """Emits what was seen in a frame, and counts its times."""
        out_s = self._emitter.emit(event).t_s
        self._model_ms += event.model_ms
        self._stats.frame_result(frame.age_ms(out_s), self._model_ms)
        self._stats.stage(task, 1e3 * (now_s - began_s))
        self._stats.stage("emit", 1e3 * (out_s - now_s))
