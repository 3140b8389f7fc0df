"""Questions about frames: asked from any thread, answered in the vision worker's, cut off by speech."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import AnswerDeltaEvent, AnswerEvent, InterruptedEvent
from edgemm.live.frames import Frame
from edgemm.live.model import LiveModel
from edgemm.live.stats import RunStats
from edgemm.results import Answer


@dataclass(frozen=True)
class Question:
    """A question that waits for its frame."""

    id: int
    text: str


class _Stopped(Exception):
    """Raised inside the model's own loop to make it let go."""


class Answering:
    """The questions that wait, and the answer that is being made.

    Every answer ends in one event: `answer`, `interrupted`, or `error`. Nothing of it is emitted after that.
    """

    def __init__(
        self,
        model: LiveModel,
        max_new_tokens: int,
        *,
        clock: Clock,
        emitter: Emitter,
        stats: RunStats,
        stop: threading.Event,
    ) -> None:
        self._model, self._max_new_tokens = model, max_new_tokens
        self._clock, self._emitter, self._stats, self._stop = clock, emitter, stats, stop
        self._questions: deque[Question] = deque()
        self._lock = threading.Lock()
        self._current: Frame | None = None  # what the answer that is being made is about

    def ask(self, question: Question) -> None:
        """Queues a question for the next frame; safe from any thread."""
        self._questions.append(question)

    def interrupt(self) -> bool:
        """Cuts off the answer that is being made; False if there is none. Safe from any thread. `interrupted` is
        emitted at once, whatever the model is doing; it lets go at its next token."""
        with self._lock:
            if self._current is None:
                return False
            self._tell_interrupted()
            return True

    @property
    def waiting(self) -> bool:
        """Whether a question waits for a frame."""
        return bool(self._questions)

    def next(self) -> Question | None:
        """The oldest question that waits; it does not wait any more."""
        return self._questions.popleft() if self._questions else None

    def answer(self, frame: Frame, question: Question) -> bool | None:
        """Answers a question over a frame; whether it was answered, None where it was cut off."""
        began_s = self._clock.now_s()
        with self._lock:
            self._current = frame
        try:
            result = self._model.answer(
                [frame.image],
                question.text,
                max_new_tokens=self._max_new_tokens,
                on_text=lambda text: self._delta(frame, question, text),
            )
        except _Stopped:
            return None
        except Exception as error:  # a task that raises must not end the run
            with self._lock:
                self._current = None
            self._emitter.report(error, "answer", frame.source)
            return False
        return self._finish(frame, question, result, began_s)

    def _finish(self, frame: Frame, question: Question, result: Answer, began_s: float) -> bool | None:
        now_s = self._clock.now_s()
        with self._lock:
            if self._current is None:
                return None
            self._current = None
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
                    latency_ms=frame.age_ms(now_s),
                )
            )
        self._stats.stage("answer", 1e3 * (now_s - began_s))
        return True

    def _delta(self, frame: Frame, question: Question, text: str) -> None:
        with self._lock:
            if self._current is not None and self._stop.is_set():
                self._tell_interrupted()
            if self._current is None:
                raise _Stopped
            self._emitter.emit(
                AnswerDeltaEvent(
                    source=frame.source,
                    question_id=question.id,
                    question=question.text,
                    text=text,
                    frames=(frame.id,),
                    t_capture_s=frame.t_capture_s,
                    latency_ms=frame.age_ms(self._clock.now_s()),
                )
            )

    def _tell_interrupted(self) -> None:
        assert self._current is not None
        frame, self._current = self._current, None
        self._emitter.emit(InterruptedEvent(source=frame.source, what="answer"))
