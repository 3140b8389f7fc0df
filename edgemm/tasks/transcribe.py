"""transcribe: sound → text, for encoder–decoders that hear (Whisper) or read raw sound (Moonshine)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import GenerationSpec, LogMelSpec, RawAudioSpec, TokensSpec
from edgemm.decoding.generate import Generated, generate
from edgemm.decoding.language import Language
from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.decoding.rules import LogitsRule
from edgemm.decoding.whisper import Span, prompt_ids, split_window, timestamp_rule
from edgemm.decoding.words import UNSPACED
from edgemm.errors import BundleError, InputError
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.features import log_mel, raw
from edgemm.results import Segment, Transcript, Word
from edgemm.runtimes.base import Value, as_numpy
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.saying import Writer
from edgemm.tasks.word_times import WordTimer, require_alignment

Samples = NDArray[np.float32]
OPTIONS = ("max_new_tokens", "beams", "length_penalty", "repetition_penalty", "no_repeat_ngram")


@dataclass(frozen=True)
class _Part:
    """Tokens of a stretch of the sound; seconds from its start."""

    tokens: tuple[int, ...]
    t_start_s: float
    t_end_s: float
    words: tuple[Word, ...] = ()


class Transcriber:
    """A speech model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        spec, text = entry.processing.audio, entry.processing.text
        if (
            not isinstance(spec, RawAudioSpec | LogMelSpec)
            or text is None
            or entry.tokens is None
            or entry.generation is None
        ):
            raise BundleError(f"{entry.name} lacks its audio or text processing")
        if entry.tokens.decoder_start is None or not entry.tokens.eos:
            raise BundleError(f"{entry.name} lacks its start or end token")
        self._graphs = graphs
        self._spec: RawAudioSpec | LogMelSpec = spec
        self._tokens: TokensSpec = entry.tokens
        self._start: int = entry.tokens.decoder_start
        self._generation: GenerationSpec = entry.generation
        self._writer = Writer(graphs)
        self._asked = AS_TRAINED
        self.tokenizer = self._writer.tokenizer

    def __call__(
        self,
        samples: Any,
        *,
        sample_rate_hz: int = 16_000,
        language: str | None = None,
        words: bool = False,
        generation: Generation = AS_TRAINED,
    ) -> Transcript:
        """Transcribe sound of any length; longer sound than the model's window is read in windows.

        `language` is a code that the checkpoint knows; None lets a multilingual model decide. With `words` the model is
        asked for time tokens too, and each word gets its times; TaskUnavailable where the bundle can't. Of `generation`
        the fields in `OPTIONS` count, `max_new_tokens` for each window; InputError for others.
        """
        start = time.perf_counter()
        self._asked = for_speech(generation)
        if words:
            require_alignment(self._graphs)
        mono = to_mono_16k(samples, sample_rate_hz, self._spec.sample_rate_hz)
        if isinstance(self._spec, RawAudioSpec):
            parts, said = self._raw(mono)
        else:
            parts, said = self._mel(mono, language, words=words)
        segments = tuple(Segment(self._text(p.tokens), round(p.t_start_s, 3), round(p.t_end_s, 3)) for p in parts)
        logs = [x for g in said for x in g.log_probabilities]
        return Transcript(
            text=" ".join(s.text for s in segments if s.text)
            if isinstance(self._spec, RawAudioSpec)
            else self._text(tuple(t for p in parts for t in p.tokens)),
            tokens=tuple(t for p in parts for t in p.tokens),
            confidence=math.exp(sum(logs) / len(logs)) if logs else 0.0,
            segments=segments,
            model_ms=(time.perf_counter() - start) * 1e3,
            words=tuple(w for p in parts for w in p.words),
        )

    def warm_up(self) -> None:
        """Load the graphs and run them once."""
        self(np.zeros(8000, np.float32))

    def _text(self, tokens: tuple[int, ...]) -> str:
        stamps = self._generation.timestamps
        words = [t for t in tokens if stamps is None or t < stamps.begin]
        return self.tokenizer.decode(words).strip()

    def _encode(self, feeds: dict[str, Value]) -> dict[str, Value]:
        session = self._graphs.session("audio_encoder")
        cross = [n for n in session.outputs if n.startswith("cross.")]
        values = session.run(feeds, keep=cross)
        return {n: values[n] for n in cross}

    def _say(
        self,
        cross: dict[str, Value],
        prompt: list[int],
        max_new_tokens: int,
        rules: tuple[LogitsRule, ...] = (),
        heard: list[NDArray[Any]] | None = None,
    ) -> Generated:
        decoder, embed = self._graphs.decoder(alignment=heard is not None), self._graphs.embed()
        logits = decoder.prefill(embed(np.array([prompt])), cross=cross)[0, -1]
        wanted = self._asked.max_new_tokens
        most = max_new_tokens if wanted is None else min(wanted, max_new_tokens)
        options = self._writer.options(replace(self._asked, max_new_tokens=most), prompt, rules=rules)
        return generate(Language(decoder, embed, heard=heard), logits, options)

    def _raw(self, samples: Samples) -> tuple[list[_Part], list[Generated]]:
        assert isinstance(self._spec, RawAudioSpec)
        rate = self._spec.sample_rate_hz
        parts, said = [], []
        for first, last in quiet_cuts(samples, int(self._spec.max_s * rate)):
            values = raw(samples[first:last], self._spec).values
            per_s = self._generation.max_tokens_per_s
            bound = int(values.shape[1] / rate * per_s) + 1 if per_s else math.inf
            limit = int(min(bound, self._generation.max_new_tokens))
            out = self._say(self._encode({"input_values": values}), [self._start], limit)
            parts.append(_Part(tuple(out.tokens), first / rate, last / rate))
            said.append(out)
        return parts, said

    def _mel(self, samples: Samples, language: str | None, *, words: bool) -> tuple[list[_Part], list[Generated]]:
        assert isinstance(self._spec, LogMelSpec)
        spec, rate = self._spec, self._spec.sample_rate_hz
        window_frames = round(spec.chunk_s * rate / spec.hop)
        long = len(samples) // spec.hop > window_frames
        features = log_mel(samples, spec, whole=long).values
        language_id: int | None = None
        parts: list[_Part] = []
        said: list[Generated] = []
        total = features.shape[2]
        sound = total if long else -(-len(samples) // spec.hop)
        timer: WordTimer | None = None
        seek = 0
        while seek < total:
            window = features[:, :, seek : seek + window_frames]
            cross = self._encode({"input_features": _padded(window, window_frames)})
            if seek == 0:
                language_id = self._language(cross, language)
                timer = self._timer(language_id) if words else None
            heard: list[NDArray[Any]] = []
            out = self._window(cross, language_id, timestamps=long or words, heard=heard if timer else None)
            said.append(out)
            spans, moved = self._spans(out, window.shape[2])
            offset_s = seek * spec.hop / rate
            timed = (
                timer.words(spans, out, heard, frames=sound - seek, offset_s=offset_s) if timer else [()] * len(spans)
            )
            parts += [_moved(s, offset_s, w) for s, w in zip(spans, timed, strict=True)]
            seek += moved or window.shape[2]
        if not long and not words:
            # No times were asked for: what was said was said somewhere in the sound.
            end_s = min(len(samples) / rate, spec.chunk_s)
            parts = [_Part(tuple(t for p in parts for t in p.tokens), 0.0, end_s)]
        return parts, said

    def _spans(self, out: Generated, frames: int) -> tuple[list[Span], int]:
        """The spans of a window of `frames`, and how many frames the next window moves on."""
        assert isinstance(self._spec, LogMelSpec)
        stamps, frame_s = self._generation.timestamps, self._spec.hop / self._spec.sample_rate_hz
        if stamps is None:
            return [Span(tuple(out.tokens), 0.0, frames * frame_s)], frames
        spans, moved_s = split_window(out.tokens, stamps, frames * frame_s)
        return spans, round(moved_s / frame_s)

    def _timer(self, language: int | None) -> WordTimer:
        assert isinstance(self._spec, LogMelSpec)
        spoken = {code for code, i in self._generation.languages.items() if i == language}
        return WordTimer(self._spec, self._generation, self.tokenizer.decode, spaced=not spoken & UNSPACED)

    def _window(
        self,
        cross: dict[str, Value],
        language: int | None,
        *,
        timestamps: bool,
        heard: list[NDArray[Any]] | None = None,
    ) -> Generated:
        prompt = prompt_ids(self._start, self._generation, language=language, timestamps=timestamps)
        stamps = self._generation.timestamps
        rules = (timestamp_rule(stamps, self._tokens.eos[0]),) if timestamps and stamps else ()
        limit = self._generation.max_positions or self._graphs.entry.context
        return self._say(cross, prompt, min(limit - len(prompt), self._generation.max_new_tokens), rules, heard)

    def _language(self, cross: dict[str, Value], language: str | None) -> int | None:
        known = self._generation.languages
        if not known:
            return None
        wanted = language or self._generation.default_language
        if wanted is not None:
            if wanted not in known:
                raise InputError(f"the model does not know the language {wanted!r}: it knows {', '.join(known)}")
            return known[wanted]
        decoder, embed = self._graphs.decoder(), self._graphs.embed()
        logits = as_numpy(decoder.prefill(embed(np.array([[self._start]])), cross=cross))[0, -1]
        return max(known.values(), key=lambda i: float(logits[i]))


def for_speech(generation: Generation) -> Generation:
    """`generation`, or InputError where it asks for what a transcript cannot have."""
    other = [name for name in generation.given if name not in OPTIONS]
    if other:
        raise InputError(f"a transcript takes no {', '.join(other)}", hint=f"it takes: {', '.join(OPTIONS)}")
    return generation


def _moved(span: Span, offset_s: float, words: tuple[Word, ...] = ()) -> _Part:
    return _Part(span.tokens, offset_s + span.t_start_s, offset_s + span.t_end_s, words)


def _padded(window: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    return np.pad(window, ((0, 0), (0, 0), (0, frames - window.shape[2])))


def quiet_cuts(samples: Samples, longest: int) -> Iterator[tuple[int, int]]:
    """Cut sound into stretches of at most `longest` samples, at the quietest place of each last third."""
    first = 0
    while len(samples) - first > longest:
        head = samples[first + 2 * longest // 3 : first + longest]
        size = max(1, longest // 300)
        energy = np.convolve(head**2, np.ones(size), mode="valid")[::size]
        cut = first + 2 * longest // 3 + int(energy.argmin()) * size + size // 2
        yield first, cut
        first = cut
    yield first, len(samples)
