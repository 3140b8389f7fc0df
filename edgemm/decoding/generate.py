"""The generation loop, one for every decoder: greedy, sampling, beams."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgemm.decoding.beam import BeamOptions, beam_search
from edgemm.decoding.language import Language
from edgemm.decoding.rules import Logits, LogitsRule, at_least, no_repeat_ngram, repetition_penalty, suppress
from edgemm.decoding.sampling import draw, narrowed
from edgemm.errors import InputError


@dataclass(frozen=True)
class GenerationOptions:
    """How to go on and when to stop.

    `temperature` 0 is greedy; else tokens are drawn with `seed` from the `top_k` likeliest (0: all) inside the
    nucleus `top_p`. With `beams` over 1 the best of that many sentences is searched. `prompt` are the ids that
    repetition rules count beside the new ones. `rules` change the scores [V] in place, given the new ids so far.
    `stop` is asked after every token whether the ids so far are enough.
    """

    max_new_tokens: int
    eos: tuple[int, ...]
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    prompt: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    rules: tuple[LogitsRule, ...] = ()
    on_token: Callable[[int], None] | None = None
    stop: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        problems = [
            (self.max_new_tokens < 0, f"max_new_tokens {self.max_new_tokens} is negative"),
            (self.min_new_tokens > self.max_new_tokens, "min_new_tokens is above max_new_tokens"),
            (self.temperature < 0, f"temperature {self.temperature} is negative"),
            (not 0 < self.top_p <= 1, f"top_p {self.top_p} is not in (0, 1]"),
            (self.beams < 1, f"beams {self.beams} is below 1"),
            (self.beams > 1 and self.temperature > 0, "beams and a temperature contradict each other"),
            (self.repetition_penalty <= 0, f"repetition_penalty {self.repetition_penalty} is not positive"),
        ]
        for wrong, message in problems:
            if wrong:
                raise InputError(message)

    def all_rules(self) -> tuple[LogitsRule, ...]:
        """Every rule that these options ask for, in transformers' order."""
        made: list[LogitsRule] = []
        if self.repetition_penalty != 1.0:
            made.append(repetition_penalty(self.repetition_penalty, self.prompt))
        if self.no_repeat_ngram:
            made.append(no_repeat_ngram(self.no_repeat_ngram, self.prompt))
        if self.min_new_tokens:
            made.append(at_least(self.min_new_tokens, self.eos))
        if self.suppress:
            made.append(suppress(self.suppress))
        if self.begin_suppress:
            made.append(suppress(self.begin_suppress, first_only=True))
        return (*made, *self.rules)


@dataclass
class Generated:
    """The new ids, the end-of-sequence id left out, and how sure the model was of each.

    `rows` says for each id that was fed to the decoder which row of it that was.
    """

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    finished: bool = False

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities; 0 where nothing was said."""
        if not self.log_probabilities:
            return 0.0
        return math.exp(sum(self.log_probabilities) / len(self.log_probabilities))


def log_probability(scores: Logits, token: int) -> float:
    """The log-probability of one token under `scores` [V], fp32, of which some may be -inf."""
    peak = np.max(scores)
    return float(scores[token] - peak - np.log(np.exp(scores - peak).sum()))


def generate(language: Language, logits: Logits, options: GenerationOptions) -> Generated:
    """Continue from `logits` [V] of the last prefilled position until an end token, a stop or a limit.

    Ties go to the lowest id, as in torch's argmax. Stops without an error where the context is full.
    """
    limit = min(options.max_new_tokens, language.decoder.capacity - language.decoder.length + 1)
    if options.beams > 1 and limit > 0:
        return _by_beams(language, logits, options, limit)
    out, decoder, rules = Generated(), language.decoder, options.all_rules()
    rng = np.random.default_rng(options.seed)
    while len(out.tokens) < limit:
        token, sureness = _pick(logits, out.tokens, rules, options, rng)
        out.first_token_s = out.first_token_s or time.perf_counter()
        if token in options.eos:
            out.finished = True
            break
        out.tokens.append(token)
        out.log_probabilities.append(sureness)
        if options.on_token is not None:
            options.on_token(token)
        if options.stop is not None and options.stop(out.tokens):
            out.finished = True
            break
        if len(out.tokens) < limit and decoder.length < decoder.capacity:
            logits = language.step([token])[0]
            out.rows.append(0)
    return out


def _pick(
    logits: Logits,
    tokens: Sequence[int],
    rules: Sequence[LogitsRule],
    options: GenerationOptions,
    rng: np.random.Generator,
) -> tuple[int, float]:
    scores = logits.astype(np.float32)
    for rule in rules:
        rule(list(tokens), scores)
    if options.temperature > 0:
        token = draw(narrowed(scores, options.temperature, options.top_k, options.top_p), rng)
    else:
        token = int(scores.argmax())
    return token, log_probability(scores, token)


def _by_beams(language: Language, logits: Logits, options: GenerationOptions, limit: int) -> Generated:
    found = beam_search(
        language,
        logits,
        BeamOptions(options.beams, limit, options.eos, options.length_penalty, options.early_stopping, options.stop),
        options.all_rules(),
    )
    # A token stood in the row that the next one continued; the last one was not fed.
    out = Generated(first_token_s=time.perf_counter(), rows=list(found.rows[1:]))
    for token, sureness in zip(found.tokens, found.log_probabilities, strict=True):
        if token in options.eos:
            out.finished = True
            break
        out.tokens.append(token)
        out.log_probabilities.append(sureness)
        if options.on_token is not None:
            options.on_token(token)
    out.finished = out.finished or (options.stop is not None and options.stop(out.tokens))
    return out
