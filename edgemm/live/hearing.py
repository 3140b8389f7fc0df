"""The sound workers: voice activity cuts utterances, a second thread transcribes them."""

from __future__ import annotations

import queue
import threading
from typing import Protocol

import numpy as np

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import AudioGapEvent, SpeechEvent, TranscriptEvent
from edgemm.live.frames import AudioBlock
from edgemm.live.ledger import Ledger
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.speech import (
    CHUNK_SAMPLES,
    LoudnessVoice,
    SpeechPolicy,
    SpeechStarted,
    Utterance,
    VoiceActivity,
)
from edgemm.live.stats import RunStats

WAITING_UTTERANCES = 8

_IDLE_S = 0.1


class SoundSource(Protocol):
    """The part of an audio capture that the worker uses."""

    name: str
    ledger: Ledger

    def read(self, timeout_s: float) -> AudioBlock | None: ...
    @property
    def ended(self) -> bool: ...


class Transcriber:
    """Transcribes utterances in its own thread, in order.

    At most `WAITING_UTTERANCES` wait. When transcribing falls further behind a live source the
    oldest one is given up, stamped as an `audio_gap`; with `wait` the caller waits instead.
    """

    def __init__(
        self,
        model: LiveModel,
        source: str,
        *,
        clock: Clock,
        emitter: Emitter,
        stats: RunStats,
        stop: threading.Event,
        wait: bool,
        language: str | None = None,
    ) -> None:
        self._model, self._source, self._wait, self._language = model, source, wait, language
        self._clock, self._emitter, self._stats, self._stop = clock, emitter, stats, stop
        self._queue: queue.Queue[tuple[Utterance, float] | None] = queue.Queue(WAITING_UTTERANCES)

    def put(self, utterance: Utterance | None) -> None:
        """Queues an utterance; None ends the thread after the ones before it."""
        wait = self._wait or utterance is None
        item = None if utterance is None else (utterance, self._clock.now_s())
        while not self._stop.is_set():
            try:
                self._queue.put(item, block=wait, timeout=_IDLE_S)
                return
            except queue.Full:
                if not wait:
                    self._give_up_oldest()

    def run(self) -> None:
        """The thread's body."""
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            if item is None:
                return
            self._transcribe(*item)

    def _give_up_oldest(self) -> None:
        try:
            lost = self._queue.get_nowait()
        except queue.Empty:
            return
        if lost is not None:
            start_s, end_s = lost[0].t_start_s, lost[0].t_end_s
            self._emitter.emit(AudioGapEvent(source=self._source, t_start_s=start_s, t_end_s=end_s))

    def _transcribe(self, utterance: Utterance, queued_s: float) -> None:
        began_s = self._clock.now_s()
        # as fast as possible, sound is read before the clock reaches its time
        heard_s = min(utterance.t_end_s, queued_s)
        try:
            result = self._model.transcribe(utterance.samples, language=self._language)
        except Exception as error:  # a task that raises must not end the run
            self._emitter.report(error, "transcribe", self._source)
            return
        now_s = self._clock.now_s()
        self._stats.stage("transcribe", 1e3 * (now_s - began_s))
        event = self._emitter.emit(
            TranscriptEvent(
                source=self._source,
                utterance=utterance.utterance,
                text=result.text,
                final=True,
                stable_chars=len(result.text),
                t_start_s=utterance.t_start_s,
                t_end_s=utterance.t_end_s,
                latency_ms=1e3 * (now_s - heard_s),
            )
        )
        self._stats.stage("speech_latency", event.latency_ms)


class SoundWorker:
    """Reads one source in one thread until it ends or `stop` is set: every block goes to the
    recording sinks, to voice activity and to the speech policy."""

    def __init__(
        self,
        model: LiveModel,
        source: SoundSource,
        options: StreamOptions,
        transcriber: Transcriber | None,
        *,
        clock: Clock,
        emitter: Emitter,
        stats: RunStats,
        stop: threading.Event,
    ) -> None:
        self._model, self._source, self._options = model, source, options
        self._transcriber = transcriber
        self._clock, self._emitter, self._stats, self._stop = clock, emitter, stats, stop
        self._policy = SpeechPolicy(options.speech)

    def run(self) -> None:
        """The thread's body."""
        voice = self._voice() if self._transcriber else None
        while not self._stop.is_set():
            block = self._source.read(_IDLE_S)
            if block is None:
                if self._source.ended:
                    break
                continue
            self._emitter.sound(block)
            if block.gap_s > 0:
                self._gap(block, voice)
            if voice is not None:
                self._listen(block, voice)
        if self._transcriber:
            self._edges(self._policy.flush())
            self._transcriber.put(None)

    def _voice(self) -> VoiceActivity:
        if "voice_activity" in self._model.tasks:
            return self._model.voice_activity()
        return LoudnessVoice()

    def _gap(self, block: AudioBlock, voice: VoiceActivity | None) -> None:
        self._emitter.emit(
            AudioGapEvent(
                source=block.source,
                t_start_s=block.t_start_s - block.gap_s,
                t_end_s=block.t_start_s,
            )
        )
        self._edges(self._policy.flush())
        if voice is not None:
            voice.reset()

    def _listen(self, block: AudioBlock, voice: VoiceActivity) -> None:
        samples = block.samples
        if len(samples) < CHUNK_SAMPLES:  # only the last block of a file is short
            samples = np.pad(samples, (0, CHUNK_SAMPLES - len(samples)))
        began_s = self._clock.now_s()
        try:
            probability = voice.push(samples)
        except Exception as error:  # a task that raises must not end the run
            self._emitter.report(error, "voice_activity", block.source)
            return
        self._stats.stage("voice_activity", 1e3 * (self._clock.now_s() - began_s))
        self._edges(self._policy.push(block.samples, probability, block.t_start_s))

    def _edges(self, edges: list[SpeechStarted | Utterance]) -> None:
        for edge in edges:
            started = isinstance(edge, SpeechStarted)
            self._emitter.emit(
                SpeechEvent(
                    source=self._source.name,
                    edge="start" if started else "end",
                    utterance=edge.utterance,
                )
            )
            if isinstance(edge, Utterance) and self._transcriber:
                self._transcriber.put(edge)
