"""transcribe: sound → text, for encoders that name a letter in every frame (wav2vec 2.0, HuBERT).

Connectionist temporal classification (Graves et al., ICML 2006), read greedily: the likeliest token of every frame,
repetitions joined, blanks left out.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import CtcSpec, RawAudioSpec
from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.errors import BundleError, InputError, TaskUnavailable
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.features import raw
from edgemm.processing.text import clean_up
from edgemm.results import Segment, Transcript
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.transcribe import quiet_cuts


class CtcVocabulary:
    """The token of every id, and how tokens become text."""

    def __init__(self, tokens: Sequence[str], spec: CtcSpec) -> None:
        self.tokens, self.spec = tuple(tokens), spec
        self._blank = self.tokens[spec.blank]

    def collapse(self, ids: NDArray[np.int64]) -> list[list[int]]:
        """The frames that each token of the text came from; ids of equal tokens are one token."""
        groups = itertools.groupby(range(len(ids)), key=lambda frame: self.tokens[int(ids[frame])])
        return [list(frames) for token, frames in groups if token != self._blank]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of collapsed ids."""
        spec = self.spec
        pieces = [spec.space if self.tokens[i] == spec.delimiter else self.tokens[i] for i in ids]
        text = "".join(pieces).strip()
        text = text.lower() if spec.lower_case else text
        return clean_up(text) if spec.clean_up else text


class CtcTranscriber:
    """A CTC model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        audio, spec = entry.processing.audio, entry.processing.ctc
        if not isinstance(audio, RawAudioSpec) or spec is None or entry.labels is None:
            raise BundleError(f"{entry.name} lacks its audio processing or its vocabulary", hint="export it again")
        names = json.loads(graphs.bundle.file(entry.labels).read_text())
        if spec.blank >= len(names):
            raise BundleError(f"the blank {spec.blank} of {entry.name} is none of its {len(names)} tokens")
        self._graphs, self._audio = graphs, audio
        self.tokenizer = CtcVocabulary(names, spec)

    def __call__(
        self,
        samples: Any,
        *,
        sample_rate_hz: int = 16_000,
        language: str | None = None,
        words: bool = False,
        generation: Generation = AS_TRAINED,
    ) -> Transcript:
        """Transcribe sound of any length; long sound is cut where it is quiet.

        `language` is what these models were trained on: another one can't be asked for, so it is not looked at.
        These models generate nothing: InputError where `generation` asks for something. They don't time `words`
        either: TaskUnavailable.
        """
        if words:
            raise TaskUnavailable(
                f"{self._graphs.entry.name} can't say when a word was said: it is a CTC model",
                hint="use a Whisper bundle, or leave words out",
            )
        if generation.given:
            raise InputError(f"a CTC model takes no {', '.join(generation.given)}", hint="leave it out")
        start = time.perf_counter()
        rate = self._audio.sample_rate_hz
        mono = to_mono_16k(samples, sample_rate_hz, rate)
        said: list[tuple[Segment, list[int], list[float]]] = []
        for first, last in quiet_cuts(mono, int(self._audio.max_s * rate)):
            tokens, logs = self._tokens(mono[first:last])
            times = round(first / rate, 3), round(last / rate, 3)
            said.append((Segment(self.tokenizer.decode(tokens), *times), tokens, logs))
        logs = [x for _, _, part in said for x in part]
        return Transcript(
            text=" ".join(s.text for s, _, _ in said if s.text),
            tokens=tuple(t for _, tokens, _ in said for t in tokens),
            confidence=math.exp(sum(logs) / len(logs)) if logs else 0.0,
            segments=tuple(s for s, _, _ in said),
            model_ms=(time.perf_counter() - start) * 1e3,
        )

    def logits(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [frames, tokens] of mono samples at the model's rate."""
        values = raw(samples, self._audio).values
        outputs = self._graphs.session("model").run({"input_values": values})
        found: NDArray[np.float32] = as_numpy(outputs["logits"])[0].astype(np.float32)
        return found

    def _tokens(self, samples: NDArray[np.float32]) -> tuple[list[int], list[float]]:
        """Collapsed ids, and the log probability of each where it is surest."""
        logits = self.logits(samples)
        peaks = logits.max(axis=1)
        logs = -np.log(np.exp(logits - peaks[:, None]).sum(axis=1))
        best = logits.argmax(axis=1)
        groups = self.tokenizer.collapse(best)
        return [int(best[g[0]]) for g in groups], [float(logs[g].max()) for g in groups]

    def warm_up(self) -> None:
        """Load the graph and run it once."""
        self(np.zeros(8000, np.float32))
