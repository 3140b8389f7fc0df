"""The greedy generation loop, one for every decoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.decoding.language import Language

Logits = NDArray[Any]
LogitsRule = Callable[[list[int], Logits], None]


@dataclass(frozen=True)
class GenerationOptions:
    """When to stop and what may be said. `rules` change the logits [V] in place, given the ids so far."""

    max_new_tokens: int
    eos: tuple[int, ...]
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    rules: tuple[LogitsRule, ...] = ()
    on_token: Callable[[int], None] | None = None


@dataclass
class Generated:
    """The new ids, the end-of-sequence id left out, and how sure the model was of each."""

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    first_token_s: float = 0.0
    finished: bool = False

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities; 0 where nothing was said."""
        if not self.log_probabilities:
            return 0.0
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities))


def log_softmax(logits: Logits) -> Logits:
    """log-probabilities [V] of logits [V], in fp32; -inf stays -inf."""
    shifted = logits.astype(np.float32) - np.max(logits)
    result: Logits = shifted - np.log(np.exp(shifted).sum())
    return result


def generate(language: Language, logits: Logits, options: GenerationOptions) -> Generated:
    """Continue from `logits` [V] of the last prefilled position until an end token or a limit.

    Ties go to the lowest id, as in torch's argmax. Stops without an error where the context is full.
    """
    out, decoder = Generated(), language.decoder
    limit = min(options.max_new_tokens, decoder.capacity - decoder.length + 1)
    while len(out.tokens) < limit:
        token, log_probability = _pick(logits, out.tokens, options)
        out.first_token_s = out.first_token_s or time.perf_counter()
        if token in options.eos:
            out.finished = True
            break
        out.tokens.append(token)
        out.log_probabilities.append(log_probability)
        if options.on_token is not None:
            options.on_token(token)
        if len(out.tokens) < limit and decoder.length < decoder.capacity:
            logits = language.step([token])[0]
    return out


def _pick(logits: Logits, tokens: Sequence[int], options: GenerationOptions) -> tuple[int, float]:
    scores = logits.astype(np.float32)
    for ids in (options.suppress, options.begin_suppress if not tokens else ()):
        if ids:
            scores[list(ids)] = -np.inf
    for rule in options.rules:
        rule(list(tokens), scores)
    token = int(scores.argmax())
    return token, float(log_softmax(scores)[token])
