"""The live pipeline: sources → workers → events → sinks, on one clock."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, get_args

from edgemm.errors import EdgemmError, TaskUnavailable, UsageError
from edgemm.live.answering import Question
from edgemm.live.asking import SpokenQuestions, check_wake
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import (
    ErrorEvent,
    Event,
    InterruptedEvent,
    StartedEvent,
    StatusEvent,
    StatusState,
    SummaryEvent,
)
from edgemm.live.hearing import SoundWorker
from edgemm.live.inputs import Inputs, microphone_of
from edgemm.live.model import LiveModel
from edgemm.live.options import SOUND_TASKS, VISION_TASKS, StreamOptions
from edgemm.live.replay import ReplayedAudio, as_recorded
from edgemm.live.sinks.base import Sink, SinkContext, SinkQueue, SinkRunner, as_edgemm_error
from edgemm.live.sinks.registry import as_sinks
from edgemm.live.stats import RunStats
from edgemm.live.transcribing import Transcriber
from edgemm.live.vision import VisionWorker

DRAIN_S = 60.0

_TICK_S = 0.02
# Below the second that a stop may take in all: warm-up may hold the interpreter.
_STOP_WAIT_S = 0.8


class Pipeline:
    """One run of a model on live sources.

    `run` blocks until the sources end, `max_frames` or `duration_s` is reached or `stop` is
    called, and returns the summary; `start` and `wait` are the same in two steps. The first event
    is `started`, the last one `summary`. Every sink has its own thread and bounded queue, and may be
    given as a URL; nothing here waits for a sink unless the run is as fast as possible. Raises
    TaskUnavailable where the model cannot do what is asked for, UsageError where there is nothing to
    do, the error of a source that could never be opened, and that of an essential sink that failed.
    """

    def __init__(self, model: LiveModel, options: StreamOptions, sinks: Sequence[Sink | str] = ()) -> None:
        self._model, self._options = model, (options := as_recorded(options, model.tasks))
        self.tasks = _tasks(model, options)
        self.clock = Clock()
        self._stats = RunStats()
        self.emitter = Emitter(self.clock, self._stats, wait=options.as_fast_as_possible)
        self._stop, self._enough, self._over = (threading.Event() for _ in range(3))
        self._wake = threading.Event()
        self._failure: EdgemmError | None = None
        self._summary: SummaryEvent | None = None
        self._sinks = as_sinks(sinks)
        self._reports: queue.SimpleQueue[EdgemmError] = queue.SimpleQueue()
        self._runners: list[SinkRunner] = []
        self._workers: list[threading.Thread] = []
        self._open_s: float | None = None
        self._sound: SoundWorker | None = None
        self._talking = False
        self._lock = threading.Lock()
        recorded = any(sink.limits.packets for sink in self._sinks)
        self.inputs = Inputs(options, self.clock, self._status, self.emitter if recorded else None)
        self._replay = self.inputs.replay
        self._vision = self._vision_worker()
        self._thread = threading.Thread(target=self._main, name="edgemm-pipeline", daemon=True)
        recorded_questions = self._replay.questions if self._replay is not None else {}
        self._question_ids = max(recorded_questions, default=-1) + 1
        for text in options.ask:
            if text not in recorded_questions.values():  # those are answered over the frames that they were
                self.ask(text)

    def run(self) -> SummaryEvent:
        """Runs to the end in the caller's thread. On KeyboardInterrupt the run is stopped, its
        summary handed to the sinks, and the interrupt raised again."""
        self.start()
        try:
            return self.wait()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts the run in threads of its own and returns at once."""
        self._thread.start()

    def wait(self) -> SummaryEvent:
        """Blocks until the run is over. Raises what ended it, if that was an error."""
        while not self._over.wait(0.5):
            pass
        if self._failure is not None:
            raise self._failure
        if self._summary is None:
            raise EdgemmError("the run ended without a summary")
        return self._summary

    def stop(self) -> None:
        """Ends the run within a second, hung sources and sinks included: what is under way is
        given up, the summary still reaches the sinks. Does nothing when it is over."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._over.wait(_STOP_WAIT_S)

    def finish(self) -> None:
        """Ends the run in good order: nothing more is taken from the sources, and what was taken
        is worked off. Returns at once."""
        self._enough.set()
        self._wake.set()

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._over.is_set()

    @property
    def failure(self) -> EdgemmError | None:
        """What ended the run, if that was an error."""
        return self._failure

    def ask(self, question: str) -> int:
        """Asks about the next frame and returns the `question_id` that its answer will carry.
        Raises TaskUnavailable if the model cannot answer."""
        if self._vision is None or not self._answers:
            raise TaskUnavailable(
                f"{self._model.name} cannot answer questions about frames",
                hint="use a bundle with the task answer, and a camera",
            )
        with self._lock:
            number = self._question_ids
            self._question_ids += 1
        self._vision.answering.ask(Question(number, question))
        return number

    def latest(self, event_type: str, max_age_s: float | None = None) -> Event | None:
        """The last event of a type, unless it is older than `max_age_s`. Never waits."""
        event = self.emitter.latest(event_type)
        if event is None or (max_age_s is not None and self.clock.now_s() - event.t_s > max_age_s):
            return None
        return event

    def switch(self, task: str, on: bool) -> bool:
        """Stops or resumes a task that looks at every picture, from the next frame on; what nobody looks at is dropped
        as `paused`. False where the run has no such task."""
        return self._vision is not None and self._vision.switch(task, on)

    def attach(self, name: str, queue: SinkQueue) -> None:
        """From now on the queue receives what it takes."""
        self.emitter.attach(name, queue)

    @property
    def _answers(self) -> bool:
        return bool(self.inputs.video) and "answer" in self.tasks

    # What follows runs in the pipeline's own thread.

    def _main(self) -> None:
        try:
            self._begin()
            self._loop()
            self._end_workers()
        except Exception as error:  # whatever it is, wait() must not hang
            self._fail(as_edgemm_error(error, "the pipeline"))
        try:
            self._close()
        except Exception as error:
            self._fail(as_edgemm_error(error, "the end of the pipeline"))
        finally:
            self._over.set()

    def _begin(self) -> None:
        for sink in self._sinks:
            runner = SinkRunner(sink, self._context(), self._sink_failed)
            self._runners.append(runner)
            self.emitter.attach(sink.name, runner.queue)
            runner.start()
        self.emitter.emit(
            StartedEvent(
                bundle=self._model.name,
                config=_config(self._options, self.tasks, self.inputs),
                wall_offset_s=self.clock.wall_offset_s,
                runtime=dict(self._model.runtimes),
                precision=dict(self._model.precisions),
            )
        )
        self._model.warm_up(self.tasks)
        started = self.emitter.latest("started")
        self.inputs.set_clock(started.t_s if started is not None else 0.0)
        self._open_s = self.clock.now_s()
        self._stats.started(self._open_s)
        self._start_workers()
        self.inputs.start()

    def _start_workers(self) -> None:
        threads: list[tuple[str, Callable[[], None]]] = []
        if self._vision is not None:
            threads.append(("vision", self._vision.run))
        if self.inputs.audio is not None:
            transcriber = self._transcriber()
            if transcriber is not None:
                threads.append(("transcribe", transcriber.run))
            self._sound = self._sound_worker(transcriber)
            threads.append(("sound", self._sound.run))
        for name, body in threads:
            thread = threading.Thread(target=self._guarded, args=(name, body), name=f"edgemm-{name}", daemon=True)
            self._workers.append(thread)
            thread.start()

    def _guarded(self, name: str, body: Callable[[], None]) -> None:
        try:
            body()
        except Exception as error:  # a worker's bug must end the run, not hang it
            self._fail(as_edgemm_error(error, f"the {name} worker"))
        finally:
            self._wake.set()

    def _loop(self) -> None:
        assert self._open_s is not None
        due_s = self._open_s + self._options.stats_every_s
        while not (self._stop.is_set() or self._enough.is_set()):
            self._wake.wait(_TICK_S)
            self._wake.clear()
            self._check_sources()
            if self._vision is not None:
                self._vision.report_stuck()
            self._emit_reports()
            self.inputs.end_pushed()
            if not any(worker.is_alive() for worker in self._workers):
                return
            if self.clock.now_s() >= due_s:
                due_s += self._options.stats_every_s
                self._emit_stats()
            if self._time_is_up():
                return

    def _check_sources(self) -> None:
        failure = self.inputs.failure()
        if failure is not None:
            self._fail(failure)

    def _time_is_up(self) -> bool:
        limit_s, fast = self._options.duration_s, self._options.as_fast_as_possible
        if limit_s is None or self._open_s is None or (fast and self.inputs.video):
            return False
        if fast and self.inputs.audio is not None:
            return self.inputs.audio.ledger.counts().audio_s >= limit_s
        return self.clock.now_s() - self._open_s >= limit_s

    def _end_workers(self) -> None:
        """Stops the sources, then waits for the workers to work off what they hold."""
        self._check_sources()
        self.inputs.end_pushed(force=True)
        self.inputs.stop(0.3)
        deadline_s = time.monotonic() + DRAIN_S
        while any(worker.is_alive() for worker in self._workers):
            if self._stop.is_set():
                self._cut_off_answer()
                deadline_s = min(deadline_s, time.monotonic() + 0.25)
                for worker in self._workers:
                    worker.join(max(0.0, deadline_s - time.monotonic()))
                return
            if time.monotonic() > deadline_s:
                return
            self._emit_reports()
            self._wake.wait(_TICK_S)
            self._wake.clear()

    def _close(self) -> None:
        self.inputs.stop(0.2)
        self._emit_reports()
        if self._failure is None or self._anything():
            self._emit_stats()
            self._summary = self._emit_summary()
        deadline_s = time.monotonic() + (0.3 if self._stop.is_set() else DRAIN_S)
        for runner in self._runners:
            runner.finish(deadline_s)
        self._stop.set()

    def _anything(self) -> bool:
        return any(item.captured or item.audio_s for item in self.inputs.counts().values())

    def _emit_reports(self) -> None:
        """What sinks reported. A sink's own threads must not emit: the emitter may be waiting for it."""
        while not self._reports.empty():
            error = self._reports.get()
            self.emitter.emit(ErrorEvent(code=error.code, message=error.message, hint=error.hint))

    def _report(self, error: EdgemmError) -> None:
        self._reports.put(error)
        self._wake.set()

    def _emit_stats(self) -> None:
        now_s = self.clock.now_s()
        self.emitter.emit(self._stats.stats(now_s, self.inputs.counts(), self.emitter.dropped()))

    def _emit_summary(self) -> SummaryEvent:
        now_s = self.clock.now_s()
        duration_s = now_s - (now_s if self._open_s is None else self._open_s)
        return self.emitter.emit(self._stats.summary(now_s, duration_s, self.inputs.counts(), self.emitter.dropped()))

    def _fail(self, error: EdgemmError) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self._stop.set()
        self._wake.set()

    def _sink_failed(self, sink: Sink, error: EdgemmError) -> None:
        if sink.essential:
            self._fail(error)
            return
        self.emitter.emit(ErrorEvent(code=error.code, message=error.message, hint=error.hint))

    def _status(self, source: str, state: str, reason: str) -> None:
        assert state in get_args(StatusState), state
        self.emitter.emit(StatusEvent(source=source, state=state, reason=reason))  # type: ignore[arg-type]

    def _context(self) -> SinkContext:
        return SinkContext(
            has_picture=bool(self.inputs.video),
            has_sound=self.inputs.audio is not None,
            media_time=self._options.as_fast_as_possible and self._replay is None,
            wall_offset_s=self.clock.wall_offset_s,
            stop=self.finish,
            epoch_s=lambda: self.inputs.epoch.start_s,
            report=self._report,
            stopping=self._stop.is_set,
            talking=self._talk,
            ask=self.ask if self._answers else None,
            tasks=self.tasks,
            switch=self.switch,
            scaled=self._options.size_px is not None,
        )

    def _vision_worker(self) -> VisionWorker | None:
        if not self.inputs.video:
            return None
        return VisionWorker(
            self._model, self.inputs.video, self.tasks, self._options,
            clock=self.clock, emitter=self.emitter, stats=self._stats, stop=self._stop,
            on_enough=self.finish, replayed_tasks=None if self._replay is None else self._replay.tasks,
        )  # fmt: skip

    def _transcriber(self) -> Transcriber | None:
        if "transcribe" not in self.tasks:
            return None
        return Transcriber(
            self._model, "mic", self._options,
            clock=self.clock, emitter=self.emitter, stats=self._stats, stop=self._stop,
            on_final=SpokenQuestions(self._options.wake, self.ask).said if self._answers and not self._replay else None,
        )  # fmt: skip

    def _cut_off_answer(self) -> None:
        cut = self._vision is not None and self._vision.answering.interrupt()
        if self._talking and not cut:
            self.emitter.emit(InterruptedEvent(what="answer"))

    def _talk(self, on: bool, mute: bool) -> None:
        self._talking = on
        if self._sound is not None and mute:
            self._sound.mute(on)

    def _sound_worker(self, transcriber: Transcriber | None) -> SoundWorker:
        assert self.inputs.audio is not None
        return SoundWorker(
            self._model, self.inputs.audio, self._options, transcriber,
            clock=self.clock, emitter=self.emitter, stats=self._stats, stop=self._stop,
            on_voice=self._cut_off_answer, replay=isinstance(self.inputs.audio, ReplayedAudio),
        )  # fmt: skip


def _tasks(model: LiveModel, options: StreamOptions) -> tuple[str, ...]:
    """The live tasks of this run, checked against the model and the sources."""
    can = [task for task in VISION_TASKS + SOUND_TASKS if task in model.tasks]
    missing = [task for task in options.tasks or () if task not in can]
    if missing:
        raise TaskUnavailable(
            f"{model.name} cannot {missing[0]}; it can {', '.join(can) or 'do nothing live'}",
            hint="leave --task out, or use another bundle",
        )
    unasked = [task for task in can if task != "describe" or "caption" not in can]
    wanted = tuple(options.tasks or unasked)
    if not (options.open_cameras or microphone_of(options) or options.push):
        raise UsageError("there is neither a camera nor a microphone", hint="give --camera or --mic")
    if options.ask and "answer" not in wanted:
        raise TaskUnavailable(
            f"{model.name} cannot answer questions",
            hint="use a bundle with the task answer, or leave --ask out",
        )
    check_wake(model.name, options, wanted)
    return wanted


def _config(options: StreamOptions, tasks: Sequence[str], inputs: Inputs) -> dict[str, Any]:
    """The options as JSON, with the sources as they are shown (passwords redacted)."""
    config = {key: value for key, value in asdict(options).items() if key != "push"}
    config["cameras"] = [source.spec for source in inputs.video]
    config["mic"] = inputs.audio.spec if inputs.audio else None
    config["tasks"] = list(tasks)
    return config
