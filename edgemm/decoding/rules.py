"""Rules: what may not be said, or is said less gladly. Each changes the scores [V] in place.

A rule is given the new tokens so far; one that also counts the prompt is made with it. They equal transformers'
logits processors of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]
LogitsRule = Callable[[list[int], Logits], None]


def repetition_penalty(penalty: float, prompt: Sequence[int] = ()) -> LogitsRule:
    """Divide positive scores of tokens that occurred by `penalty`, multiply negative ones (CTRL, arXiv 1909.05858)."""

    def rule(tokens: list[int], scores: Logits) -> None:
        seen = np.unique(np.array([*prompt, *tokens], np.int64))
        seen = seen[seen < len(scores)]  # placeholders may stand past the words
        if len(seen):
            values = scores[seen]
            scores[seen] = np.where(values < 0, values * penalty, values / penalty)

    return rule


def no_repeat_ngram(size: int, prompt: Sequence[int] = ()) -> LogitsRule:
    """Forbid the token that would complete an n-gram of `size` tokens a second time."""

    def rule(tokens: list[int], scores: Logits) -> None:
        ids = [*prompt, *tokens]
        if len(ids) + 1 < size:
            return
        last = ids[len(ids) - size + 1 :]
        for i in range(len(ids) - size + 1):
            if ids[i : i + size - 1] == last and ids[i + size - 1] < len(scores):
                scores[ids[i + size - 1]] = -np.inf

    return rule


def at_least(count: int, eos: Sequence[int]) -> LogitsRule:
    """Forbid the end tokens before `count` new tokens."""
    ends = list(eos)

    def rule(tokens: list[int], scores: Logits) -> None:
        if len(tokens) < count and ends:
            scores[ends] = -np.inf

    return rule


def suppress(ids: Sequence[int], *, first_only: bool = False) -> LogitsRule:
    """Forbid `ids`, everywhere or as the first new token."""
    banned = list(ids)

    def rule(tokens: list[int], scores: Logits) -> None:
        if not (first_only and tokens):
            scores[banned] = -np.inf

    return rule
