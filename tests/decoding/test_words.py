"""Tokens → words against transformers' Whisper tokenizer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer, _combine_tokens_into_words

from edgemm.decoding.words import words_of
from edgemm.processing.text import Tokenizer
from tests.export.exported import checkpoint

TEXTS = [
    " What is in the picture? A red car, a blue door (and two people).",
    " \"Turn left,\" he said: 'stop!' ... and - wait -- until 10:45.",
    " größe, naïve café; it's $5.00 [or 6%]",
    "“¡hola!” ¿qué? well-known",
    "今日は、良い天気ですね。「はい」",
    " สวัสดี ครับ",
    " 🤖🦊 robots",
    "no space first",
    "  two  spaces  ",
    " . , ( )",
    "",
]


@cache
def original():
    return WhisperTokenizer.from_pretrained(checkpoint("whisper"))


@cache
def own():
    return Tokenizer(checkpoint("whisper") / "tokenizer.json")


def _same(tokens, spaced):
    texts, _, places = _combine_tokens_into_words(original(), list(tokens), "english" if spaced else "japanese")
    found = words_of(tokens, own().decode, spaced=spaced)
    assert [w.text for w in found] == texts
    assert [list(range(w.first, w.end)) for w in found] == places
    return found


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_words_equal_the_originals(text, spaced):
    tokens = own().encode(text, specials=False)
    found = _same(tokens, spaced)
    assert "".join(w.text for w in found) == text


def test_punctuation_joins_its_word():
    tokens = own().encode(" A red car, (and two people).", specials=False)
    found = [w.text for w in words_of(tokens, own().decode)]
    assert found == [" A", " red", " car,", " (and", " two", " people)."]


@pytest.mark.parametrize("spaced", [True, False])
def test_words_of_any_tokens_equal_the_originals(spaced):
    """Half characters, bytes that are none, punctuation in every place."""
    rng = np.random.default_rng(4)
    letters = own().encode("".join(TEXTS), specials=False)
    for trial in range(200):
        pool = letters if trial % 2 else range(256)
        _same(rng.choice(pool, size=trial % 23).tolist(), spaced)
