"""The transcribing thread: finals in order, and partials of whoever speaks now in between."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import AudioGapEvent, TranscriptEvent
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.partials import Agreement, Pace
from edgemm.live.speech import Utterance
from edgemm.live.stats import RunStats
from edgemm.results import Transcript

WAITING_UTTERANCES = 8

_IDLE_S = 0.1


@dataclass(frozen=True)
class _Work:
    """Sound to decode. `queued_s` is when it was given; as fast as possible, sound is read before the clock
    reaches its time."""

    utterance: Utterance
    queued_s: float
    final: bool

    @property
    def heard_s(self) -> float:
        return min(self.utterance.t_end_s, self.queued_s)


class Transcriber:
    """Transcribes in its own thread, one decode at a time.

    Utterances that ended go in order, and before drafts unless they were split; at most `WAITING_UTTERANCES` wait.
    When transcribing falls further behind a live source the oldest one is given up, stamped as an `audio_gap`; as fast
    as possible the caller waits instead. Of the drafts (an utterance that goes on, or may just have ended) only the
    newest waits. The final of a draft that turns out to be the whole utterance is emitted without decoding again.
    `on_final` is given every final text with its utterance.
    """

    def __init__(
        self,
        model: LiveModel,
        source: str,
        options: StreamOptions,
        *,
        clock: Clock,
        emitter: Emitter,
        stats: RunStats,
        stop: threading.Event,
        on_final: Callable[[str, Utterance], object] | None = None,
    ) -> None:
        self._model, self._source = model, source
        self._wait, self._language = options.as_fast_as_possible, options.language
        self._partials = options.speech.partial_every_s is not None
        self._on_final = on_final
        self._clock, self._emitter, self._stats, self._stop = clock, emitter, stats, stop
        self._changed = threading.Condition()
        self._finals: deque[_Work] = deque()
        self._draft: _Work | None = None
        self._busy = self._ended = False
        self._pace = Pace(options.speech.partial_every_s)
        self._agreement, self._number = Agreement(), -1
        self._decoded: tuple[int, int, Transcript] | None = None

    def put(self, utterance: Utterance | None, rest: Utterance | None = None) -> None:
        """Queues an utterance that has ended; None ends the thread after the ones before it. `rest` is what has been
        said since of one that was split: a draft that goes before it, because whoever speaks has been waiting longer.
        """
        with self._changed:
            if utterance is None:
                self._ended = True
                self._changed.notify_all()
                return
            while self._wait and len(self._finals) >= WAITING_UTTERANCES and not self._stop.is_set():
                self._changed.wait(_IDLE_S)
            lost = self._finals.popleft() if len(self._finals) >= WAITING_UTTERANCES else None
            now_s = self._clock.now_s()
            self._finals.append(_Work(utterance, now_s, final=True))
            self._draft = _Work(rest, now_s, final=False) if rest is not None and self._partials else None
            self._changed.notify_all()
        if lost is not None:
            start_s, end_s = lost.utterance.t_start_s, lost.utterance.t_end_s
            self._emitter.emit(AudioGapEvent(source=self._source, t_start_s=start_s, t_end_s=end_s))

    def draft(self, utterance: Utterance) -> None:
        """An open utterance so far: decoded as soon as the thread is free, unless a newer one comes before."""
        with self._changed:
            self._draft = _Work(utterance, self._clock.now_s(), final=False)
            self._changed.notify_all()

    def started(self) -> None:
        """Speech began: its first draft is due at once."""
        with self._changed:
            self._pace.reset()

    def due(self) -> bool:
        """Whether the thread is free and the next draft is due, or one waits that newer sound can replace."""
        with self._changed:
            if self._draft is not None:
                return self._partials
            return not (self._busy or self._finals) and self._pace.due(self._clock.now_s())

    def too_long(self, utterance: Utterance) -> bool:
        """Whether drafts of this open utterance begin to take too long."""
        with self._changed:
            return self._pace.too_long(utterance.duration_s)

    def run(self) -> None:
        """The thread's body."""
        while not self._stop.is_set() and self.step(_IDLE_S):
            pass

    def step(self, timeout_s: float) -> bool:
        """Does what is next, or waits for something up to `timeout_s`; False when all is done."""
        with self._changed:
            work = self._next()
            self._busy = work is not None
            if work is None:
                if not self._ended:
                    self._changed.wait(timeout_s)
                return not self._ended or bool(self._finals)
        self._transcribe(work)
        with self._changed:
            self._busy = False
        return True

    def _next(self) -> _Work | None:
        urgent = self._draft is not None and self._finals and self._finals[0].utterance.split
        if self._finals and not urgent:
            self._changed.notify_all()
            return self._finals.popleft()
        work, self._draft = self._draft, None
        return work

    def _transcribe(self, work: _Work) -> None:
        said = work.utterance
        result = self._known(said) if work.final else None
        if result is None:
            result = self._decode(said)
        if result is None:
            return
        if work.final:
            self._emit(work, result.text, len(result.text))
            if self._on_final is not None:
                self._on_final(result.text.strip(), said)
            return
        self._decoded = (said.utterance, len(said.samples), result)
        if said.utterance != self._number:
            self._agreement, self._number = Agreement(), said.utterance
        text, stable_chars = self._agreement.push(result.text)
        if text and self._partials and not self._over(said.utterance):
            self._emit(work, text, stable_chars)

    def _known(self, said: Utterance) -> Transcript | None:
        """The decode of a draft with just this sound."""
        if self._decoded is None or self._decoded[:2] != (said.utterance, len(said.samples)):
            return None
        return self._decoded[2]

    def _over(self, number: int) -> bool:
        with self._changed:
            return any(work.utterance.utterance == number for work in self._finals)

    def _decode(self, said: Utterance) -> Transcript | None:
        began_s = self._clock.now_s()
        try:
            result = self._model.transcribe(said.samples, language=self._language)
        except Exception as error:  # a task that raises must not end the run
            self._emitter.report(error, "transcribe", self._source)
            return None
        took_s = self._clock.now_s() - began_s
        self._stats.stage("transcribe", 1e3 * took_s)
        with self._changed:
            self._pace.decoded(began_s, took_s, said.duration_s)
        return result

    def _emit(self, work: _Work, text: str, stable_chars: int) -> None:
        said = work.utterance
        event = self._emitter.emit(
            TranscriptEvent(
                source=self._source,
                utterance=said.utterance,
                text=text,
                final=work.final,
                stable_chars=stable_chars,
                t_start_s=said.t_start_s,
                t_end_s=said.t_end_s,
                latency_ms=1e3 * (self._clock.now_s() - work.heard_s),
            )
        )
        self._stats.stage("speech_latency" if work.final else "partial_latency", event.latency_ms)
