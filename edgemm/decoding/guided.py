"""Answers that must be JSON of a schema, or match a regular expression: tokens that can't lead there are forbidden."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.decoding.rules import Logits, LogitsRule
from edgemm.errors import InputError, missing_extra


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise missing_extra("llguidance", "guided", error) from error
    return llguidance


@lru_cache(maxsize=4)
def _vocabulary(path: Path, size: int, eos: int) -> Any:
    return _llguidance().LLTokenizer(path.read_text(), n_vocab=size, eos_token=eos)


def json_rule(schema: Mapping[str, Any], tokenizer_json: str | PathLike[str], vocabulary: int, eos: int) -> LogitsRule:
    """Only tokens with which the answer can still become JSON that `schema` admits; then only the end.

    `vocabulary` is the width of the logits. Raises InputError for a schema that cannot be followed, RuntimeUnavailable
    where llguidance is not installed.
    """
    return _rule(_llguidance().LLMatcher.grammar_from_json_schema(json.dumps(schema)), tokenizer_json, vocabulary, eos)


def regex_rule(pattern: str, tokenizer_json: str | PathLike[str], vocabulary: int, eos: int) -> LogitsRule:
    """Only tokens with which the answer can still match `pattern`; then only the end."""
    return _rule(_llguidance().LLMatcher.grammar_from_regex(pattern), tokenizer_json, vocabulary, eos)


def _rule(grammar: Any, tokenizer_json: str | PathLike[str], vocabulary: int, eos: int) -> LogitsRule:
    guidance = _llguidance()
    words = _vocabulary(Path(tokenizer_json), vocabulary, eos)
    matcher = guidance.LLMatcher(words, grammar)
    if matcher.is_error():
        raise InputError(f"this schema cannot be followed: {matcher.get_error()}")
    consumed: list[int] = []

    def rule(tokens: list[int], scores: Logits) -> None:
        fresh = tokens[len(consumed) :]
        if tokens[: len(consumed)] != consumed or not matcher.consume_tokens(fresh):
            raise InputError(f"the answer left its schema: {matcher.get_error()}")
        consumed.extend(fresh)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(scores)].astype(bool)
        scores[: len(allowed)][~allowed] = -np.inf

    return rule
