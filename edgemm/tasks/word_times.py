"""When each word of a transcript was said, for decoders with the output `alignment` (Whisper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from edgemm.bundle.spec import GenerationSpec, LogMelSpec
from edgemm.decoding.alignment import of_sentence, token_times
from edgemm.decoding.generate import Generated
from edgemm.decoding.whisper import Span
from edgemm.decoding.words import Decode, words_of
from edgemm.errors import TaskUnavailable
from edgemm.results import Word
from edgemm.runtimes.base import ALIGNMENT
from edgemm.tasks.graphs import Graphs


def require_alignment(graphs: Graphs) -> None:
    """Have the decoder say what it attends to; TaskUnavailable where it can't."""
    if ALIGNMENT not in graphs.outputs_of("decoder"):
        raise TaskUnavailable(
            f"{graphs.entry.name} can't say when a word was said: its decoder has no output {ALIGNMENT}",
            hint="run edgemm export again, on a Whisper checkpoint whose generation_config.json has alignment_heads",
        )
    # Before anything else of the call loads it without.
    graphs.decoder(alignment=True)


class WordTimer:
    """The words of one sound, window by window. `spaced` says that its language writes spaces between words."""

    def __init__(self, audio: LogMelSpec, generation: GenerationSpec, decode: Decode, *, spaced: bool) -> None:
        self._audio, self._generation = audio, generation
        self._decode, self._spaced = decode, spaced

    def words(
        self, spans: Sequence[Span], out: Generated, heard: Sequence[NDArray[Any]], *, frames: int, offset_s: float
    ) -> Iterator[tuple[Word, ...]]:
        """The words of each span of a window that begins at `offset_s` and holds `frames` frames of sound.

        `heard` [B, heads, 1, T'] is the alignment of every token of `out` that was fed to the decoder.
        """
        ends_s = self._ends_s(out, heard, max(0, frames))
        # A token begins where the one before it ended, be that a word or a time.
        starts_s = (0.0, *ends_s)
        first = 0
        for span in spans:
            last = first + len(span.tokens)
            yield self._timed(span.tokens, starts_s[first:last], ends_s[first:last], offset_s)
            first = last

    def _ends_s(self, out: Generated, heard: Sequence[NDArray[Any]], frames: int) -> tuple[float, ...]:
        weights = of_sentence(heard[: len(out.rows)], out.rows)
        audio, positions = self._audio, weights.shape[2]
        window = round(audio.chunk_s * audio.sample_rate_hz / audio.hop)
        return token_times(
            weights[..., : frames * positions // window],
            tokens=len(out.tokens),
            step_s=audio.chunk_s / max(1, positions),
            median_width=self._generation.median_filter_width,
        )

    def _timed(
        self, tokens: Sequence[int], starts_s: Sequence[float], ends_s: Sequence[float], offset_s: float
    ) -> tuple[Word, ...]:
        stamps = self._generation.timestamps
        texts = [i for i, token in enumerate(tokens) if stamps is None or token < stamps.begin]
        # Of special tokens nothing is left: they are no part of a word.
        places = [i for i in texts if self._decode([tokens[i]])]
        groups = words_of([tokens[i] for i in places], self._decode, spaced=self._spaced)
        return tuple(
            Word(
                group.text,
                round(offset_s + starts_s[places[group.first]], 3),
                round(offset_s + ends_s[places[group.end - 1]], 3),
            )
            for group in groups
        )
