"""Whisper's way through long sound: time tokens, and windows that begin where the last one stopped.

After Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv 2212.04356), section 4.5, with
the choices of transformers' `generate` (no temperature fallback, no text of earlier windows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.bundle.spec import GenerationSpec, TimestampSpec
from edgemm.decoding.rules import Logits, LogitsRule


def prompt_ids(start: int, generation: GenerationSpec, *, language: int | None, timestamps: bool) -> list[int]:
    """The ids that a window begins with: start, language, task, and whether times are wanted."""
    ids = [start]
    if language is not None:
        ids.append(language)
        if generation.tasks:
            ids.append(generation.tasks[generation.default_task or "transcribe"])
    stamps = generation.timestamps
    if not timestamps and stamps is not None and stamps.no_timestamps is not None:
        ids.append(stamps.no_timestamps)
    return ids


def timestamp_rule(spec: TimestampSpec, eos: int) -> LogitsRule:
    """Time tokens come in pairs, never run backwards, and are taken where together they are likelier than any word."""

    def rule(tokens: list[int], scores: Logits) -> None:
        if spec.no_timestamps is not None:
            scores[spec.no_timestamps] = -np.inf
        _pairs(tokens, scores, spec.begin, eos)
        if not tokens:
            scores[: spec.begin] = -np.inf
            if spec.max_initial is not None:
                scores[spec.begin + spec.max_initial + 1 :] = -np.inf
        words, times = scores[: spec.begin], scores[spec.begin :]
        if np.isfinite(times).any() and _log_sum_exp(times) > words.max():
            scores[: spec.begin] = -np.inf

    return rule


def _log_sum_exp(values: Logits) -> float:
    peak = values.max()
    return float(np.log(np.exp(values - peak).sum()) + peak)


def _pairs(tokens: Sequence[int], scores: Logits, begin: int, eos: int) -> None:
    last = len(tokens) >= 1 and tokens[-1] >= begin
    before = len(tokens) < 2 or tokens[-2] >= begin
    if last and before:
        scores[begin:] = -np.inf
    elif last:
        scores[:eos] = -np.inf
    times = [t for t in tokens if t >= begin]
    if times:
        earliest = times[-1] if last and not before else times[-1] + 1
        scores[begin:earliest] = -np.inf


@dataclass(frozen=True)
class Span:
    """Tokens between two time stamps; seconds from the start of the window."""

    tokens: tuple[int, ...]
    t_start_s: float
    t_end_s: float


def split_window(tokens: Sequence[int], spec: TimestampSpec, window_s: float) -> tuple[list[Span], float]:
    """Cut a window's tokens at its time stamps; return the spans and how far the next window moves (seconds).

    A window that ends in the middle of a span is read again from the last finished one.
    """
    stamp = [t >= spec.begin for t in tokens]
    cuts = [i + 1 for i in range(len(stamp) - 1) if stamp[i] and stamp[i + 1]]
    complete = stamp[-2:] == [False, True]
    if not cuts:
        return [_whole(tokens, stamp, spec, window_s)], window_s
    if complete:
        cuts.append(len(tokens))
    else:
        cuts[-1] += 1
    spans = []
    start = 0
    for i, stop in enumerate(cuts):
        piece = tokens[start:stop]
        end = -1 if complete or i < len(cuts) - 1 else -2
        spans.append(Span(tuple(piece), _time(piece[0], spec), _time(piece[end], spec)))
        start = stop
    return spans, window_s if complete else _time(tokens[start - 2], spec)


def _whole(tokens: Sequence[int], stamp: Sequence[bool], spec: TimestampSpec, window_s: float) -> Span:
    times = [t for t, is_time in zip(tokens, stamp, strict=True) if is_time]
    if times and times[-1] != spec.begin:
        end = _time(times[-1], spec)
    else:
        end = int(window_s / spec.precision_s + 1e-6) * spec.precision_s
    return Span(tuple(tokens), 0.0, end)


def _time(token: int, spec: TimestampSpec) -> float:
    return (token - spec.begin) * spec.precision_s
