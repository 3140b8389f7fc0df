"""When somebody speaks: a pure state machine from voice probabilities to utterances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemm.live.options import SpeechOptions

CHUNK_SAMPLES = 512
SAMPLE_RATE_HZ = 16_000
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE_HZ

_LAPSE_S = 0.1


class VoiceActivity(Protocol):
    """A streaming detector: float32 [512] at 16 kHz in, the probability of speech in 0…1 out."""

    def push(self, samples: NDArray[np.float32]) -> float: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class SpeechStarted:
    """Speech began; `t_start_s` is where its utterance starts, pre-roll included."""

    utterance: int
    t_start_s: float


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech ended. `samples` float32 [samples] at 16 kHz cover `t_start_s` to `t_end_s`; `split`
    says that the speaker goes on and the next utterance follows without a break."""

    utterance: int
    samples: NDArray[np.float32]
    t_start_s: float
    t_end_s: float
    split: bool = False

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / SAMPLE_RATE_HZ


class _Chunk(NamedTuple):
    samples: NDArray[np.float32]
    probability: float
    t_start_s: float


class SpeechPolicy:
    """Feeds on chunks of 512 samples (32 ms) with their probabilities, gives edges.

    A chunk at `threshold` opens a candidate; with `min_speech_s` of voice it becomes speech, and
    0.1 s without voice before that forgets it. Speech ends after `endpoint_s` below
    `threshold_off`. At most `max_utterance_s` of sound is held. While an utterance is open, `heard` gives it so far.
    """

    def __init__(self, options: SpeechOptions | None = None) -> None:
        self._options = options or SpeechOptions()
        self._chunks: list[_Chunk] = []
        self._onset: int | None = None
        self._voiced = 0
        self._quiet = 0
        self._speaking = False
        self._next = 0

    @property
    def speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._speaking

    @property
    def pausing(self) -> bool:
        """Whether the newest chunk of the open utterance is without voice."""
        return self._speaking and self._quiet > 0

    @property
    def settled(self) -> bool:
        """Whether it is from this very chunk on that the open utterance, if no more is said, is what `heard` gives."""
        needed_s = max(self._options.speculate_s, self._options.padding_s)
        return self._speaking and self._quiet == _chunks(needed_s)

    @property
    def barging_in(self) -> bool:
        """Whether it is from this very chunk on that there is enough voice to cut off an answer."""
        least_s = self._options.barge_in_s
        return least_s is not None and not self._quiet and self._voiced == _chunks(least_s)

    def heard(self) -> Utterance | None:
        """The open utterance so far, and as it will be if it ends here; None where nobody speaks."""
        return self._of(self._chunks[: self._end()]) if self._speaking else None

    def push(
        self, samples: NDArray[np.float32], probability: float, t_start_s: float
    ) -> list[SpeechStarted | Utterance]:
        """One chunk, float32 [512], its probability and its time on the pipeline's clock."""
        self._chunks.append(_Chunk(samples, probability, t_start_s))
        self._count(probability)
        if self._speaking:
            return self._while_speaking()
        return self._while_quiet()

    def flush(self) -> list[SpeechStarted | Utterance]:
        """The sound ends here, or is broken by a gap: an open utterance ends, what was heard
        before is forgotten."""
        edges: list[SpeechStarted | Utterance] = []
        if self._speaking:
            edges.append(self._utterance(self._end()))
        self._chunks.clear()
        self._forget()
        return edges

    def _count(self, probability: float) -> None:
        options = self._options
        voiced_from = options.threshold if self._onset is None else options.threshold_off
        if probability >= voiced_from:
            if self._onset is None:
                self._onset = len(self._chunks) - 1
            self._voiced += 1
            self._quiet = 0
        else:
            self._quiet += 1

    def _while_quiet(self) -> list[SpeechStarted | Utterance]:
        if self._onset is None:
            self._keep_pre_roll()
            return []
        if self._voiced >= _chunks(self._options.min_speech_s):
            self._speaking = True
            return [SpeechStarted(self._next, self._chunks[0].t_start_s)]
        if self._quiet >= _chunks(_LAPSE_S):
            self._forget()
            self._keep_pre_roll()
        return []

    def _while_speaking(self) -> list[SpeechStarted | Utterance]:
        if self._quiet >= _chunks(self._options.endpoint_s):
            edge = self._utterance(self._end())
            self._forget()
            self._keep_pre_roll()
            return [edge]
        if len(self._chunks) >= _chunks(self._options.max_utterance_s):
            return self.split()
        return []

    def _end(self) -> int:
        """Where the open utterance ends if no more is said."""
        return min(len(self._chunks) - self._quiet + _chunks(self._options.padding_s), len(self._chunks))

    def split(self) -> list[SpeechStarted | Utterance]:
        """Ends the open utterance at its quietest place of the second half; speech goes on. Does nothing where it is
        shorter than a second."""
        if not self._speaking or len(self._chunks) < _chunks(1.0):
            return []
        half = len(self._chunks) // 2
        voice = np.array([chunk.probability for chunk in self._chunks[half:]])
        loudness = np.array([float(np.mean(chunk.samples**2)) for chunk in self._chunks[half:]])
        around = np.convolve(voice + loudness / (loudness.max() + 1e-9), np.ones(5), mode="same")
        around[:2] = around[-2:] = np.inf
        edge = self._utterance(half + int(np.argmin(around)) + 1, split=True)
        self._onset = 0
        self._quiet = min(self._quiet, len(self._chunks))
        return [edge, SpeechStarted(self._next, self._chunks[0].t_start_s)]

    def _utterance(self, end: int, *, split: bool = False) -> Utterance:
        edge = self._of(self._chunks[:end], split=split)
        del self._chunks[:end]
        self._next += 1
        return edge

    def _of(self, chunks: list[_Chunk], *, split: bool = False) -> Utterance:
        last = chunks[-1]
        return Utterance(
            utterance=self._next,
            samples=np.concatenate([chunk.samples for chunk in chunks]),
            t_start_s=chunks[0].t_start_s,
            t_end_s=last.t_start_s + len(last.samples) / SAMPLE_RATE_HZ,
            split=split,
        )

    def _forget(self) -> None:
        self._onset, self._voiced, self._quiet, self._speaking = None, 0, 0, False

    def _keep_pre_roll(self) -> None:
        keep = _chunks(self._options.pre_roll_s)
        del self._chunks[: max(0, len(self._chunks) - keep)]


class LoudnessVoice:
    """Voice activity for bundles without a model for it: loudness above the noise floor.

    The floor follows quiet sound within a second and loud sound within half a minute; 9 dB above
    it is a probability of one half.
    """

    def __init__(self) -> None:
        self._floor_db = -50.0

    def push(self, samples: NDArray[np.float32]) -> float:
        """The probability that float32 [512] at 16 kHz is speech."""
        level_db = 10.0 * float(np.log10(np.mean(np.square(samples)) + 1e-9))
        rate = 0.05 if level_db < self._floor_db else 0.001
        self._floor_db += rate * (level_db - self._floor_db)
        return float(1.0 / (1.0 + np.exp(-(level_db - self._floor_db - 9.0) / 2.0)))

    def reset(self) -> None:
        """Forgets the noise floor."""
        self._floor_db = -50.0


def _chunks(seconds: float) -> int:
    return max(1, round(seconds / CHUNK_S))
