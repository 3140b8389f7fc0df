"""Rules and warpers against transformers' logits processors on random scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from edgemm.decoding.rules import at_least, no_repeat_ngram, repetition_penalty, suppress
from edgemm.decoding.sampling import draw, narrowed, softmax

VOCABULARY = 50
PROMPT = [3, 7, 7, 9]
EOS = (1, 2)


def _cases():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 5, 13, 40):
        yield rng.integers(0, 12, length).tolist(), (4 * rng.standard_normal(VOCABULARY)).astype(np.float32)


def _original(processor, tokens, scores):
    return processor(torch.tensor([[*PROMPT, *tokens]]), torch.from_numpy(scores.copy())[None])[0].numpy()


def _ours(rule, tokens, scores):
    out = scores.copy()
    rule(tokens, out)
    return out


@pytest.mark.parametrize("penalty", [0.8, 1.2, 2.0])
def test_repetition_penalty(penalty):
    rule, original = repetition_penalty(penalty, PROMPT), hf.RepetitionPenaltyLogitsProcessor(penalty)
    for tokens, scores in _cases():
        np.testing.assert_allclose(_ours(rule, tokens, scores), _original(original, tokens, scores), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_repeat_ngram(size):
    rule, original = no_repeat_ngram(size, PROMPT), hf.NoRepeatNGramLogitsProcessor(size)
    for tokens, scores in _cases():
        np.testing.assert_array_equal(_ours(rule, tokens, scores), _original(original, tokens, scores))


def test_at_least():
    original = hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, list(EOS))
    for tokens, scores in _cases():
        np.testing.assert_array_equal(_ours(at_least(5, EOS), tokens, scores), _original(original, tokens, scores))


def test_suppress():
    everywhere = hf.SuppressTokensLogitsProcessor([4, 8])
    first = hf.SuppressTokensAtBeginLogitsProcessor([4, 8], len(PROMPT))
    for tokens, scores in _cases():
        np.testing.assert_array_equal(_ours(suppress([4, 8]), tokens, scores), _original(everywhere, tokens, scores))
        ours = _ours(suppress([4, 8], first_only=True), tokens, scores)
        np.testing.assert_array_equal(ours, _original(first, tokens, scores))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (7, 1.0), (0, 0.9), (0, 0.05), (20, 0.5), (999, 0.99)]
)
def test_narrowed(temperature, top_k, top_p):
    warpers = [hf.TemperatureLogitsWarper(temperature)]
    warpers += [hf.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for tokens, scores in _cases():
        expected = scores
        for warper in warpers:
            expected = _original(warper, tokens, expected)
        np.testing.assert_allclose(narrowed(scores, temperature, top_k, top_p), expected, rtol=1e-6)


def test_draws_follow_the_probabilities_and_the_seed():
    scores = narrowed(np.array([0.0, 1.0, 2.0, -np.inf, 0.5], np.float32), 1.0)
    drawn = [draw(scores, rng) for rng in [np.random.default_rng(0)] for _ in range(20_000)]
    found = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(found, softmax(scores), atol=0.02)
    again = np.random.default_rng(0)
    assert drawn[:50] == [draw(scores, again) for _ in range(50)]
