"""The sound worker: voice activity cuts utterances, which another thread transcribes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import AudioGapEvent, SpeechEvent
from edgemm.live.frames import AudioBlock
from edgemm.live.ledger import Ledger
from edgemm.live.model import LiveModel
from edgemm.live.options import StreamOptions
from edgemm.live.speech import (
    CHUNK_S,
    CHUNK_SAMPLES,
    LoudnessVoice,
    SpeechPolicy,
    SpeechStarted,
    Utterance,
    VoiceActivity,
)
from edgemm.live.stats import RunStats
from edgemm.live.transcribing import Transcriber

# A room's echo, and what lies in a loudspeaker's and a microphone's buffers.
MUTE_TAIL_S = 0.3

_IDLE_S = 0.1


class SoundSource(Protocol):
    """The part of an audio capture that the worker uses."""

    name: str
    ledger: Ledger

    def read(self, timeout_s: float) -> AudioBlock | None: ...
    @property
    def ended(self) -> bool: ...


class SoundWorker:
    """Reads one source in one thread until it ends or `stop` is set: every block goes to the
    recording sinks, to voice activity and to the speech policy. `on_voice` is called when somebody begins to speak,
    before it is certain that it is speech. In a `replay` the blocks say when nobody listened and where an utterance was
    split, and nobody is interrupted."""

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
        on_voice: Callable[[], None] = lambda: None,
        replay: bool = False,
    ) -> None:
        self._model, self._source, self._options = model, source, options
        self._transcriber = transcriber
        self._clock, self._emitter, self._stats, self._stop = clock, emitter, stats, stop
        self._policy = SpeechPolicy(options.speech)
        self._voice: VoiceActivity | None = None
        self._on_voice, self._replay = on_voice, replay
        self._muted_s = (-math.inf, -math.inf)

    def run(self) -> None:
        """The thread's body."""
        while not self._stop.is_set():
            block = self._source.read(_IDLE_S)
            if block is not None:
                self.hear(block)
            elif self._source.ended:
                break
        if self._transcriber:
            self._edges(self._policy.flush())
            self._transcriber.put(None)

    def mute(self, on: bool) -> None:
        """From now on, and until `MUTE_TAIL_S` after it ends, silence is heard; recording sinks get the sound. Safe
        from any thread."""
        now_s = self._clock.now_s()
        if not on:
            self._muted_s = (self._muted_s[0], now_s + MUTE_TAIL_S)
        elif now_s >= self._muted_s[1]:
            self._muted_s = (now_s, math.inf)
        else:
            self._muted_s = (self._muted_s[0], math.inf)

    def hear(self, block: AudioBlock) -> None:
        """The next block of the source."""
        if self._transcriber and self._voice is None:
            self._voice = self._voice_activity()
        if block.gap_s > 0:
            self._gap(block)
        if self._voice is not None:
            block = self._listen(block, self._voice)
        self._emitter.sound(block)

    def _voice_activity(self) -> VoiceActivity:
        if "voice_activity" in self._model.tasks:
            return self._model.voice_activity()
        return LoudnessVoice()

    def _gap(self, block: AudioBlock) -> None:
        self._emitter.emit(
            AudioGapEvent(
                source=block.source,
                t_start_s=block.t_start_s - block.gap_s,
                t_end_s=block.t_start_s,
            )
        )
        self._edges(self._policy.flush())
        if self._voice is not None:
            self._voice.reset()

    def _listen(self, block: AudioBlock, voice: VoiceActivity) -> AudioBlock:
        """Returns the block with what depended on the moment."""
        samples = block.samples
        if len(samples) < CHUNK_SAMPLES:  # only the last block of a file is short
            samples = np.pad(samples, (0, CHUNK_SAMPLES - len(samples)))
        began_s = self._clock.now_s()
        try:
            probability = voice.push(samples)
        except Exception as error:  # a task that raises must not end the run
            self._emitter.report(error, "voice_activity", block.source)
            return block
        self._stats.stage("voice_activity", 1e3 * (self._clock.now_s() - began_s))
        heard, live = block.samples, not self._options.as_fast_as_possible
        muted = block.muted if self._replay else live and self._muted(block)
        if muted:
            heard, probability = np.zeros_like(heard), 0.0
        self._edges(self._policy.push(heard, probability, block.t_start_s))
        if live and not self._replay and self._policy.barging_in:
            self._on_voice()
        split = self._replay and block.split
        if split:
            self._edges(self._policy.split())
        elif live:
            split = self._draft()
        return replace(block, muted=muted, split=split)

    def _muted(self, block: AudioBlock) -> bool:
        first_s, last_s = self._muted_s
        return block.t_start_s < last_s and block.t_start_s + CHUNK_S > first_s

    def _draft(self) -> bool:
        """Has what was said so far transcribed when that is due, and at once when it may be all; whether it was split
        instead, because that would take too long."""
        policy, transcriber = self._policy, self._transcriber
        if transcriber is None or not (policy.settled or (not policy.pausing and transcriber.due())):
            return False
        heard = policy.heard()
        if heard is None:
            return False
        if not policy.pausing and not self._replay and transcriber.too_long(heard):
            self._edges(policy.split())
            return True
        transcriber.draft(heard)
        return False

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
            if self._transcriber is None:
                continue
            if isinstance(edge, Utterance):
                rest = self._policy.heard() if edge.split and not self._options.as_fast_as_possible else None
                self._transcriber.put(edge, rest)
            else:
                self._transcriber.started()
