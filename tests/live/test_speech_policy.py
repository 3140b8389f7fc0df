"""The speech policy, chunk by chunk: 32 ms each, s for speech, . for silence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgemm.errors import UsageError
from edgemm.live.options import SpeechOptions
from edgemm.live.speech import (
    CHUNK_S,
    CHUNK_SAMPLES,
    LoudnessVoice,
    SpeechPolicy,
    SpeechStarted,
    Utterance,
)

PROBABILITY = {"s": 0.9, ".": 0.05, "-": 0.4}  # "-" lies between the two thresholds


def play(pattern, options=None, *, flush=True):
    """[(chunk number, edge)] of a pattern; each chunk's samples hold its own number."""
    policy, out = SpeechPolicy(options), []
    for n, letter in enumerate(pattern):
        samples = np.full(CHUNK_SAMPLES, n, np.float32)
        out += [(n, edge) for edge in policy.push(samples, PROBABILITY[letter], n * CHUNK_S)]
    if flush:
        out += [(len(pattern), edge) for edge in policy.flush()]
    return out


def span(edge):
    """First and last chunk of an utterance, which must be without a hole."""
    numbers = edge.samples[::CHUNK_SAMPLES].astype(int)
    assert (np.diff(numbers) == 1).all()
    assert edge.t_start_s == pytest.approx(numbers[0] * CHUNK_S)
    assert edge.t_end_s == pytest.approx((numbers[-1] + 1) * CHUNK_S)
    return int(numbers[0]), int(numbers[-1])


def test_one_utterance():
    edges = play("." * 20 + "s" * 30 + "." * 40)
    (started, start), (ended, end) = edges
    assert isinstance(start, SpeechStarted)
    assert started == 27  # min_speech_s is 8 chunks, the first voiced one is number 20
    assert isinstance(end, Utterance)
    assert ended == 65  # endpoint_s is 16 chunks after the last voiced one, number 49
    assert span(end) == (12, 55)  # 8 chunks of pre-roll, 6 of padding
    assert start.t_start_s == end.t_start_s
    assert not end.split


def test_a_click_is_not_speech():
    assert play("." * 20 + "s" * 4 + "." * 40) == []


def test_clicks_far_apart_do_not_add_up():
    assert play(("s" * 4 + "." * 10) * 6) == []


def test_hesitation_inside_a_word_is_bridged():
    edges = play("." * 10 + "sss..sss..sss" + "." * 40)
    assert [type(edge) for _, edge in edges] == [SpeechStarted, Utterance]


def test_hysteresis():
    assert play("." * 10 + "-" * 60) == []
    (_, _), (ended, _) = play("." * 10 + "s" * 10 + "-" * 30 + "." * 30)
    assert ended == 65  # the voice of 0.4 carries on what has begun


def test_a_pause_shorter_than_the_endpoint_does_not_end():
    edges = play("s" * 20 + "." * 15 + "s" * 20 + "." * 30)
    assert [type(edge) for _, edge in edges] == [SpeechStarted, Utterance]


def test_two_utterances_share_no_sound():
    edges = play("." * 10 + "s" * 20 + "." * 17 + "s" * 20 + "." * 30)
    first, second = [edge for _, edge in edges if isinstance(edge, Utterance)]
    assert (first.utterance, second.utterance) == (0, 1)
    assert span(first)[1] < span(second)[0]


def test_flush_ends_what_is_open():
    (_, start), (n, end) = play("." * 10 + "s" * 20)
    assert isinstance(start, SpeechStarted)
    assert n == 30
    assert span(end) == (2, 29)


def test_flush_forgets_a_candidate():
    policy = SpeechPolicy()
    for n in range(4):
        policy.push(np.zeros(CHUNK_SAMPLES, np.float32), 0.9, n * CHUNK_S)
    assert policy.flush() == []
    assert not policy.speaking


def test_a_long_speech_is_split_at_its_quietest_place():
    options = SpeechOptions(max_utterance_s=4.0)
    edges = play("s" * 90 + "-----" + "s" * 60 + "." * 30, options)
    first, second = [edge for _, edge in edges if isinstance(edge, Utterance)]
    assert first.split
    assert not second.split
    assert 90 <= span(first)[1] <= 95
    assert span(second)[0] == span(first)[1] + 1
    assert [type(edge) for _, edge in edges] == [SpeechStarted, Utterance] * 2


def test_endless_speech_is_bounded():
    options = SpeechOptions(max_utterance_s=3.0)
    utterances = [e for _, e in play("s" * 1000, options) if isinstance(e, Utterance)]
    spans = [span(edge) for edge in utterances]
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(spans))
    assert spans[0][0] == 0
    assert spans[-1][1] == 999
    assert max(last - first for first, last in spans) * CHUNK_S <= 3.0


def test_silence_holds_no_memory():
    policy = SpeechPolicy()
    for n in range(2000):
        policy.push(np.zeros(CHUNK_SAMPLES, np.float32), 0.0, n * CHUNK_S)
    assert len(policy._chunks) <= 8


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 0.3}, {"threshold": 1.0}, {"padding_s": 0.6}, {"max_utterance_s": 1.0}],
)
def test_options_that_contradict_each_other(wrong):
    with pytest.raises(UsageError):
        SpeechOptions(**wrong)


def test_loudness_voice_tells_a_tone_from_noise():
    noise = np.random.default_rng(0).standard_normal((100, CHUNK_SAMPLES)).astype(np.float32)
    tone = 0.2 * np.sin(2 * np.pi * 200 * np.arange(CHUNK_SAMPLES) / 16_000).astype(np.float32)
    voice = LoudnessVoice()
    quiet = [voice.push(0.002 * chunk) for chunk in noise]
    assert max(quiet) < 0.35
    assert min(voice.push(tone) for _ in range(30)) > 0.9
