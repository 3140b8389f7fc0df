"""The greedy loop: limits, stops and rules, over a decoder whose next token is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from edgemm.decoding.generate import GenerationOptions, generate, log_probability
from edgemm.decoding.language import Language
from edgemm.tasks.transcribe import quiet_cuts

VOCABULARY, EOS = 11, 10


class Counter:
    """A decoder that says n + 1 after n, `EOS` included, and holds `capacity` positions."""

    def __init__(self, capacity=64, length=3):
        self.capacity, self.length, self.steps = capacity, length, 0

    def step(self, embeds, *, positions=None, extras=None):
        assert self.length < self.capacity
        self.length += 1
        self.steps += 1
        return after(int(embeds[0, 0, 0]))[None]


def embed(ids):
    return ids[..., None].astype(np.float32)


def after(token):
    logits = np.zeros(VOCABULARY, np.float32)
    logits[(token + 1) % VOCABULARY] = 5.0
    return logits


def say(decoder=None, **options):
    settings = {"max_new_tokens": 50, "eos": (EOS,), **options}
    return generate(Language(decoder or Counter(), embed), after(2), GenerationOptions(**settings))


def test_stops_at_the_end_token_and_leaves_it_out():
    out = say()
    assert out.tokens == [3, 4, 5, 6, 7, 8, 9]
    assert out.finished
    assert out.confidence == pytest.approx(np.exp(log_probability(after(2), 3)), rel=1e-5)


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_stops_at_the_limit_without_a_wasted_step(limit):
    decoder = Counter()
    out = say(decoder, max_new_tokens=limit)
    assert len(out.tokens) == limit
    assert not out.finished
    assert decoder.steps == max(0, limit - 1)


@pytest.mark.parametrize("capacity", [3, 4, 7])
def test_fills_the_context_and_stops(capacity):
    """The last token needs no place: it is read from the logits of the last position."""
    decoder = Counter(capacity=capacity)
    out = say(decoder, eos=())
    assert len(out.tokens) == capacity - 3 + 1
    assert decoder.length == capacity


def test_any_of_several_end_tokens_stops():
    assert say(eos=(EOS, 6)).tokens == [3, 4, 5]


def test_suppressed_and_begin_suppressed():
    assert say(suppress=(5,), max_new_tokens=4).tokens == [3, 4, 0, 1]
    assert say(begin_suppress=(3,), max_new_tokens=3).tokens == [0, 1, 2]
    assert say(begin_suppress=(4,), max_new_tokens=3).tokens == [3, 4, 5]


def test_rules_see_the_ids_so_far_and_change_the_logits():
    seen = []

    def rule(tokens, logits):
        seen.append(list(tokens))
        logits[4] = -np.inf

    assert say(rules=(rule,), max_new_tokens=3).tokens == [3, 0, 1]
    assert seen == [[], [3], [3, 0]]


def test_ties_go_to_the_lowest_id():
    out = generate(Language(Counter(), embed), np.ones(VOCABULARY, np.float32), GenerationOptions(1, (EOS,)))
    assert out.tokens == [0]


def test_each_token_is_told():
    heard = []
    assert say(on_token=heard.append).tokens == heard


def test_nothing_said_has_no_confidence():
    assert say(max_new_tokens=0).confidence == 0.0


def test_log_probabilities_equal_torch():
    import torch

    scores = np.random.default_rng(0).normal(0, 30, 50).astype(np.float32)
    scores[[3, 7]] = -np.inf
    expected = torch.log_softmax(torch.from_numpy(scores), 0).numpy()
    found = [log_probability(scores, token) for token in range(50)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_half_precision_logits_are_judged_in_single():
    logits = after(2).astype(np.float16)
    out = generate(Language(Counter(), embed), logits, GenerationOptions(1, (EOS,)))
    assert out.log_probabilities[0] == pytest.approx(log_probability(after(2), 3), abs=1e-5)


@pytest.mark.parametrize("length", [1, 999, 1000, 1001, 3000, 12_345])
def test_quiet_cuts_cover_the_sound(length):
    samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    cuts = list(quiet_cuts(samples, 1000))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    assert all(0 < last - first <= 1000 for first, last in cuts)


def test_quiet_cuts_find_the_pause():
    samples = np.random.default_rng(1).normal(0, 0.3, 48_000).astype(np.float32)
    samples[13_000:14_000] = 0.0
    first, last = next(iter(quiet_cuts(samples, 16_000)))
    assert (first, 13_000 <= last <= 14_000) == (0, True)


def test_no_sound_is_one_empty_stretch():
    assert list(quiet_cuts(np.zeros(0, np.float32), 100)) == [(0, 0)]
