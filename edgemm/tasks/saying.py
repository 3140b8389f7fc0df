"""What every task that writes shares: the options settled, the text streamed, stops and schemas obeyed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import GenerationSpec, TokensSpec
from edgemm.decoding.generate import Generated, GenerationOptions, generate
from edgemm.decoding.language import Language
from edgemm.decoding.options import Generation
from edgemm.decoding.rules import LogitsRule
from edgemm.decoding.settle import settled
from edgemm.decoding.stops import Shown, before_stop
from edgemm.errors import BundleError, InputError
from edgemm.processing.text import Tokenizer
from edgemm.tasks.graphs import Graphs

OnText = Callable[[str], None] | None


class Writer:
    """The words of one model. `forced` are ids that begin every output."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        if entry.processing.text is None or entry.tokens is None:
            raise BundleError(f"{entry.name} lacks its tokenizer or its special tokens", hint="export it again")
        self.spec = entry.generation or GenerationSpec()
        self.tokens: TokensSpec = entry.tokens
        self._file: Path = graphs.bundle.file(entry.processing.text.tokenizer)
        self.tokenizer = Tokenizer(self._file, entry.processing.text)

    def options(
        self, asked: Generation, prompt: Sequence[int], *, rules: tuple[LogitsRule, ...] = (), vocabulary: int = 0
    ) -> GenerationOptions:
        """The options of a generation after `prompt`; `vocabulary` is the width of the logits."""
        forced = self.spec.forced_ids
        rules = (*rules, _begin_with(forced)) if forced else rules
        if asked.schema is not None:
            rules = (*rules, self._schema(asked, vocabulary))
        stop = self._stop(tuple(asked.stop)) if asked.stop else None
        options = settled(asked, self.spec, self.tokens.eos, prompt, rules=rules, stop=stop)
        if self.spec.forced_eos is None:
            return options
        return replace(options, rules=(*rules, _end_at(options.max_new_tokens, self.spec.forced_eos)))

    def say(
        self,
        language: Language,
        logits: NDArray[Any],
        asked: Generation,
        prompt: Sequence[int],
        *,
        on_text: OnText = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Generated:
        """Continue `prompt` from its last `logits` [V]. `on_text` is given each new piece of text."""
        stream, shown = self.tokenizer.stream(), Shown(on_text, tuple(asked.stop))

        def tell(token: int) -> None:
            if on_token is not None:
                on_token(token)
            shown.push(stream.push(token))

        options = self.options(asked, prompt, vocabulary=len(logits))
        out = generate(language, logits, replace(options, on_token=tell))
        shown.push(stream.finish(), final=True)
        return out

    def text(self, out: Generated, asked: Generation, *, specials: bool = False) -> str:
        """The words of `out`, without the stop that ended them; with `specials` those that are no words too."""
        text = self.tokenizer.decode(out.tokens, skip_specials=not specials)
        return before_stop(text, tuple(asked.stop)).strip()

    def _stop(self, stops: tuple[str, ...]) -> Callable[[Sequence[int]], bool]:
        def ends(ids: Sequence[int]) -> bool:
            text = self.tokenizer.decode(ids)
            return any(stop in text for stop in stops)

        return ends

    def _schema(self, asked: Generation, vocabulary: int) -> LogitsRule:
        from edgemm.decoding.guided import json_rule

        if not self.tokens.eos or asked.schema is None:
            raise InputError("a schema needs a model with an end token")
        rule, first = json_rule(asked.schema, self._file, vocabulary, self.tokens.eos[0]), len(self.spec.forced_ids)
        if not first:
            return rule

        def behind(tokens: list[int], scores: NDArray[Any]) -> None:
            if len(tokens) >= first:
                rule(tokens[first:], scores)

        return behind


def _begin_with(ids: Sequence[int]) -> LogitsRule:
    def rule(tokens: list[int], scores: NDArray[Any]) -> None:
        if len(tokens) < len(ids):
            scores[:] = -np.inf
            scores[ids[len(tokens)]] = 0.0

    return rule


def _end_at(limit: int, eos: int) -> LogitsRule:
    def rule(tokens: list[int], scores: NDArray[Any]) -> None:
        if len(tokens) == limit - 1:
            scores[:] = -np.inf
            scores[eos] = 0.0

    return rule
