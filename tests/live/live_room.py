"""Hearing on simulated time, in one thread."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np

from edgemm.live.emitter import Emitter
from edgemm.live.frames import AudioBlock
from edgemm.live.hearing import SoundWorker
from edgemm.live.options import StreamOptions
from edgemm.live.sinks.base import SinkLimits, SinkQueue
from edgemm.live.speech import CHUNK_S, CHUNK_SAMPLES
from edgemm.live.stats import RunStats
from edgemm.live.transcribing import Transcriber
from edgemm.results import Transcript
from tests.live.live_fakes import LoudVoice


class Room:
    """A sound worker and a transcriber in one thread on simulated time: while the model decodes, the room goes on.

    `says` has a letter for each 32 ms: s speech, . silence. A decode takes `fixed_s` and `per_s` for a second of
    sound, and says how many voiced chunks it heard, a word each. `at` calls something with the worker before a chunk.
    """

    def __init__(self, says, *, fixed_s=0.02, per_s=0.05, at=None, **options):
        self.now_s, self.says = 0.0, says
        self._fixed_s, self._per_s = fixed_s, per_s
        self.decodes = []
        self._at = at or {}
        self.tasks = ("transcribe", "voice_activity")
        self._heard = 0
        clock = SimpleNamespace(now_s=lambda: self.now_s)
        stats, stop = RunStats(), threading.Event()
        emitter = Emitter(clock, stats)
        self._queue = SinkQueue(SinkLimits(events=10_000))
        emitter.attach("test", self._queue)
        given = {"clock": clock, "emitter": emitter, "stats": stats, "stop": stop}
        options = StreamOptions(mic="test://", **options)
        self.finals = []
        self._transcriber = Transcriber(
            self, "mic", options, on_final=lambda text, said: self.finals.append(text), **given
        )
        self._worker = SoundWorker(self, SimpleNamespace(name="mic"), options, self._transcriber, **given)
        while self._hear():
            self._transcriber.step(0.0)
        self._transcriber.put(None)
        while self._transcriber.step(0.0):
            pass
        self._queue.close()
        self.events = list(iter(self._queue.get, None))

    def _hear(self):
        if self._heard >= len(self.says):
            return False
        samples = np.full(CHUNK_SAMPLES, 0.5 if self.says[self._heard] == "s" else 0.0, np.float32)
        start_s = self._heard * CHUNK_S
        self._heard += 1
        self.now_s = max(self.now_s, start_s + CHUNK_S)
        self._at.get(self._heard - 1, lambda worker: None)(self._worker)
        self._worker.hear(AudioBlock("mic", samples, 16_000, start_s))
        return True

    def voice_activity(self):
        return LoudVoice()

    def transcribe(self, samples, *, language=None):
        end_s = self.now_s + self._fixed_s + self._per_s * len(samples) / 16_000
        self.decodes.append((self.now_s, len(samples)))
        while (self._heard + 1) * CHUNK_S <= end_s and self._hear():
            pass
        self.now_s = max(self.now_s, end_s)
        words = int((samples[::CHUNK_SAMPLES] > 0).sum())
        return Transcript(" ".join(f"w{n}" for n in range(words)), (), 1.0, (), 1.0)

    def of(self, final):
        return [e for e in self.events if e.type == "transcript" and e.final == final]


def pattern(*spans_s):
    """Speech and silence in turn, in seconds, speech first."""
    return "".join(letter * round(s / CHUNK_S) for s, letter in zip(spans_s, "s." * len(spans_s), strict=False))
