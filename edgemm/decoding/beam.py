"""Beam search over one prompt, with the stop rules and scores of transformers' `generate(num_beams=n)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemm.decoding.language import Language
from edgemm.decoding.rules import Logits, LogitsRule


@dataclass(frozen=True)
class BeamOptions:
    """`early_stopping` ends as soon as `beams` sentences are finished; without it the best running one must be
    unable to win as it stands, with "never" at any length. `stop` is asked of every sentence whether it is enough."""

    beams: int
    max_new_tokens: int
    eos: tuple[int, ...]
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True)
class Sentence:
    """New tokens (the end token included where there is one), their log-probabilities, the score, and the row of the
    decoder that each token continued."""

    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    score: float = 0.0
    rows: tuple[int, ...] = ()

    def with_token(self, token: int, log_probability: float, score: float, row: int) -> Sentence:
        tokens, logs = (*self.tokens, token), (*self.log_probabilities, log_probability)
        return Sentence(tokens, logs, score, (*self.rows, row))


def beam_search(language: Language, logits: Logits, options: BeamOptions, rules: Sequence[LogitsRule] = ()) -> Sentence:
    """The best sentence that continues `logits` [V] of the last prefilled position."""
    search = _Search(options)
    scores = _scores(logits[None], [Sentence()], rules)
    language.decoder.reorder(np.zeros(options.beams, np.int64))
    while True:
        parents = search.advance(scores)
        if search.done or language.decoder.length >= language.decoder.capacity:
            return search.best()
        language.decoder.reorder(np.array(parents, np.int64))
        step = language.step([s.tokens[-1] for s in search.running])
        scores = _scores(step, search.running, rules)


def _scores(logits: NDArray[Any], rows: Sequence[Sentence], rules: Sequence[LogitsRule]) -> NDArray[np.float32]:
    """Log-probabilities [rows, V] after the rules."""
    values: NDArray[np.float32] = logits.astype(np.float32)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    for row, sentence in zip(values, rows, strict=True):
        for rule in rules:
            rule(list(sentence.tokens), row)
    return values


class _Search:
    """Running and finished sentences. Finished ones are scored by their mean, to the power of the length penalty."""

    def __init__(self, options: BeamOptions) -> None:
        self.options = options
        self.running: list[Sentence] = [Sentence()]
        self.finished: list[Sentence] = []
        self.done = False
        self._improvable = True

    def advance(self, scores: NDArray[np.float32]) -> list[int]:
        """Take one more token by `scores` [running, V]; return the row that each running sentence came from."""
        options = self.options
        total = scores + np.array([s.score for s in self.running], np.float32)[:, None]
        keep = max(2, 1 + len(options.eos)) * options.beams
        flat = total.ravel()
        order = np.argsort(-flat, kind="stable")[:keep]
        at_end = len(self.running[0].tokens) + 1 >= options.max_new_tokens
        going: list[tuple[int, Sentence]] = []
        ended: list[Sentence] = []
        for rank, index in enumerate(order):
            row, token = divmod(int(index), scores.shape[1])
            longer = self.running[row].with_token(token, float(scores[row, token]), float(flat[index]), row)
            if at_end or token in options.eos or (options.stop is not None and options.stop(longer.tokens)):
                ended += [longer] if rank < options.beams else []
            else:
                going.append((row, longer))
        self._finish(ended)
        going = going[: options.beams]
        if going:
            self.running = [s for _, s in going]
        self._judge(bool(going))
        return [row for row, _ in going]

    def _finish(self, ended: Sequence[Sentence]) -> None:
        full = len(self.finished) == self.options.beams
        if not self._improvable or (full and self.options.early_stopping is True):
            return
        self.finished += [self._mean(s) for s in ended]
        self.finished = sorted(self.finished, key=lambda s: -s.score)[: self.options.beams]

    def _mean(self, sentence: Sentence) -> Sentence:
        score = sentence.score / len(sentence.tokens) ** self.options.length_penalty
        return replace(sentence, score=score)

    def _judge(self, running: bool) -> None:
        full = len(self.finished) == self.options.beams
        if full and running:
            self._improvable &= self._best_chance() > min(s.score for s in self.finished)
        self.done = not running or not self._improvable or (full and self.options.early_stopping is True)

    def _best_chance(self) -> float:
        options, best = self.options, self.running[0]
        long = options.early_stopping == "never" and options.length_penalty > 0
        length: int = options.max_new_tokens if long else len(best.tokens)
        return float(best.score / length**options.length_penalty)

    def best(self) -> Sentence:
        """The best finished sentence, or the best running one where none finished."""
        return self.finished[0] if self.finished else self.running[0]
