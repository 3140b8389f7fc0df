"""Partial and final transcripts: what is stable, when they come. All on simulated time."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.live.options import SpeechOptions
from edgemm.live.partials import LAG_S, Agreement, Pace
from edgemm.live.speech import CHUNK_S
from edgemm.live.transcribing import WAITING_UTTERANCES
from tests.live.live_room import Room, pattern

ENDPOINT_S = 16 * CHUNK_S
SPECULATE_S = 6 * CHUNK_S


def shown(*decodes):
    """[(text, the stable part of it)] of successive decodes."""
    agreement = Agreement()
    return [(text, text[:n]) for text, n in (agreement.push(decode) for decode in decodes)]


def test_what_two_decodes_agree_on_is_stable():
    assert shown("He might.", "He might even.", "He might even have") == [
        ("He might.", ""),
        ("He might even.", "He might"),
        ("He might even have", "He might even"),
    ]


def test_half_a_word_is_not_stable():
    assert shown("respect", "respectable than", "respectable that") == [
        ("respect", ""),
        ("respectable than", ""),
        ("respectable that", "respectable"),
    ]
    assert shown("don", "don't go")[1][1] == ""
    assert shown("ill", "ill-disposed")[1][1] == ""


def test_punctuation_that_wavers_is_not_stable():
    assert [stable for _, stable in shown("Please turn?", "Please turn.", "Please turn, left")] == [
        "", "Please turn", "Please turn",
    ]  # fmt: skip


def test_the_stable_part_stays_when_a_decode_contradicts_it():
    said = shown(
        "I'd less to be",
        "I'd less to be rather",
        "Unless to be rather cold, so",
        "Unless to be rather cold-hearted",
        "Unless to be rather cold-hearted and",
    )
    assert [stable for _, stable in said] == [
        "", "I'd less to be", "I'd less to be rather", "I'd less to be rather", "I'd less to be rather cold-hearted",
    ]  # fmt: skip
    assert said[-1][0] == "I'd less to be rather cold-hearted and"


@pytest.mark.parametrize("seed", range(20))
def test_no_later_partial_breaks_a_promise(seed):
    rng, agreement, stable = np.random.default_rng(seed), Agreement(), ""
    for n in range(12):
        words = rng.choice(["a", "an", "ant,", "Ant.", "the"], size=rng.integers(0, n + 2))
        text, chars = agreement.push(" ".join(words))
        assert text.startswith(stable)
        assert chars >= len(stable)
        stable = text[:chars]


@pytest.mark.parametrize("took_s", [0.01, 0.1, 0.3, 0.66, 0.9, 1.0])
def test_the_pace_keeps_the_lag_and_half_of_the_time(took_s):
    pace = Pace(0.3)
    assert pace.due(0.0)
    pace.decoded(10.0, took_s, 3.0)
    next_s = next(t for t in np.arange(10.0, 13.0, 0.001) if pace.due(t))
    assert next_s - 10.0 + took_s <= LAG_S + 0.002
    assert next_s - 10.0 >= max(0.3, took_s) - 0.002
    if took_s <= LAG_S / 3:
        assert next_s - 10.0 >= 2 * took_s - 0.002


def test_one_decode_that_was_held_up_splits_nothing():
    pace = Pace(0.3)
    assert not pace.too_long(20.0)
    for took_s, sound_s in ((0.05, 1.0), (0.1, 2.0), (0.2, 3.0), (3.0, 4.0)):
        pace.decoded(0.0, took_s, sound_s)
    assert not pace.too_long(8.0)
    assert pace.too_long(20.0)


def test_a_model_that_takes_as_long_for_any_sound_splits_nothing():
    pace = Pace(0.3)
    for sound_s in (0.5, 1.0, 2.0, 4.0):
        pace.decoded(0.0, 1.5, sound_s)
        assert not pace.too_long(3 * sound_s)


def test_the_first_partial_comes_within_700_ms():
    room = Room("." * 20 + pattern(3.0, 2.0))
    assert room.of(final=False)[0].t_s - 20 * CHUNK_S <= 0.7


def test_the_pace_of_one_utterance_does_not_hold_up_the_next():
    room = Room("." * 20 + pattern(1.0, 0.9, 1.0, 2.0), fixed_s=0.6, per_s=0.0)
    start_s = next(e.t_s for e in room.events if e.type == "speech" and (e.edge, e.utterance) == ("start", 1))
    assert any(began_s == pytest.approx(start_s, abs=1e-6) for began_s, _ in room.decodes)


def test_partials_follow_the_speaker():
    room = Room("." * 20 + pattern(6.0, 2.0))
    partials = room.of(final=False)
    assert len(partials) >= 10
    assert [e.t_end_s for e in partials] == sorted(e.t_end_s for e in partials)
    assert all(e.stable_chars <= len(e.text) for e in partials)
    assert partials[-1].stable_chars > 0
    assert {e.utterance for e in room.of(final=True)} == {0}


@pytest.mark.parametrize("per_s", [0.02, 0.05, 0.1, 0.2, 0.3])
def test_the_lag_stays_below_2_s_on_a_slow_machine(per_s):
    room = Room("." * 20 + pattern(40.0, 4.0), per_s=per_s)
    told = [e for e in room.events if e.type == "transcript"]
    covered_s, lags_s = 20 * CHUNK_S, []
    for event in told:
        lags_s.append(event.t_s - covered_s)
        covered_s = max(covered_s, event.t_end_s)
    assert max(lags_s) <= LAG_S + CHUNK_S
    finals = room.of(final=True)
    assert sum(e.t_end_s - e.t_start_s for e in finals) == pytest.approx(40.0 + 8 * CHUNK_S + SPECULATE_S, abs=0.1)


def test_one_decode_at_a_time_of_the_newest_sound():
    room = Room("." * 20 + pattern(5.0, 2.0), fixed_s=0.7, per_s=0.0)
    starts_s = [start_s for start_s, _ in room.decodes]
    assert min(np.diff(starts_s)) >= 0.7 - 1e-6
    for event in room.of(final=False):
        assert event.latency_ms <= 1e3 * (0.7 + CHUNK_S) + 1


def test_a_draft_that_waits_makes_way_for_newer_sound():
    room = Room("." * 20 + pattern(0.5, 0.25, 2.0, 3.0), fixed_s=0.6, per_s=0.0)
    (final,) = room.of(final=True)
    assert len(room.decodes) >= 4
    for began_s, n in room.decodes[:-1]:
        assert began_s - (final.t_start_s + n / 16_000) <= 2 * CHUNK_S + 1e-6


def test_the_final_is_decoded_in_the_pause_and_told_at_the_endpoint():
    room = Room("." * 20 + pattern(2.0, 3.0), per_s=0.0, speech=SpeechOptions(partial_every_s=0.05))
    last_voiced_s = (20 + round(2.0 / CHUNK_S)) * CHUNK_S
    (final,) = room.of(final=True)
    end = next(e for e in room.events if e.type == "speech" and e.edge == "end")
    assert end.t_s == pytest.approx(last_voiced_s + ENDPOINT_S, abs=1e-6)
    assert final.t_s - end.t_s <= CHUNK_S
    assert final.stable_chars == len(final.text)
    in_pause = [start_s for start_s, _ in room.decodes if start_s > last_voiced_s + 1e-6]
    assert in_pause == [pytest.approx(last_voiced_s + SPECULATE_S, abs=1e-6)]
    assert room.decodes[-1][1] == round((final.t_end_s - final.t_start_s) * 16_000)
    assert room.finals == [final.text]


def test_what_was_decoded_in_a_pause_is_thrown_away_if_speech_goes_on():
    room = Room("." * 20 + pattern(1.0, 0.4, 1.0, 3.0))
    (final,) = room.of(final=True)
    sound = [n for _, n in room.decodes]
    assert sound[-1] == round((final.t_end_s - final.t_start_s) * 16_000)
    assert len(final.text.split()) == 2 * round(1.0 / CHUNK_S)
    pause_s = (20 + round(1.0 / CHUNK_S)) * CHUNK_S + SPECULATE_S
    assert any(start_s == pytest.approx(pause_s, abs=1e-6) for start_s, _ in room.decodes)


def test_a_slow_speculation_becomes_the_final_too():
    """It is under way at the endpoint: it is waited for, not begun again."""
    room = Room("." * 20 + pattern(1.0, 3.0), fixed_s=0.5, per_s=0.0)
    (final,) = room.of(final=True)
    whole = round((final.t_end_s - final.t_start_s) * 16_000)
    assert [n for _, n in room.decodes].count(whole) == 1
    end_s = next(e.t_s for e in room.events if e.type == "speech" and e.edge == "end")
    assert 0 < final.t_s - end_s <= 0.5
    assert not [e for e in room.of(final=False) if e.t_s > end_s]


def test_the_endpoint_stays_where_it_is_configured():
    options = SpeechOptions(endpoint_s=1.0)
    room = Room("." * 20 + pattern(1.0, 3.0), speech=options)
    end_s = next(e.t_s for e in room.events if e.type == "speech" and e.edge == "end")
    last_voiced_s = (20 + round(1.0 / CHUNK_S)) * CHUNK_S
    assert end_s == pytest.approx(last_voiced_s + round(1.0 / CHUNK_S) * CHUNK_S, abs=1e-6)


def test_without_partials_the_final_is_decoded_in_the_pause_all_the_same():
    room = Room("." * 20 + pattern(2.0, 3.0), speech=SpeechOptions(partial_every_s=None))
    assert not room.of(final=False)
    assert len(room.decodes) == len(room.of(final=True)) == 1
    assert room.decodes[0][0] == pytest.approx((20 + round(2.0 / CHUNK_S)) * CHUNK_S + SPECULATE_S, abs=1e-6)


def test_without_partials_nothing_is_decoded_twice():
    room = Room("." * 20 + pattern(40.0, 3.0), fixed_s=1.5, per_s=0.0, speech=SpeechOptions(partial_every_s=None))
    assert len(room.of(final=True)) >= 3
    assert len(room.decodes) == len(room.of(final=True)) == len([e for e in room.events if e.type == "transcript"])


def test_the_oldest_is_given_up_when_too_many_wait_and_stamped():
    waits = WAITING_UTTERANCES + 2
    spoken = "." * 20 + pattern(*([0.5, 0.7] * (waits + 1)))
    room = Room(spoken, fixed_s=(waits + 2) * 1.2, per_s=0.0, speech=SpeechOptions(partial_every_s=None))
    gaps = [event for event in room.events if event.type == "audio_gap"]
    finals = room.of(final=True)
    assert gaps
    assert len(gaps) + len(finals) == waits + 1
    assert not {event.t_start_s for event in gaps} & {event.t_start_s for event in finals}
    assert [event.utterance for event in finals] == sorted(event.utterance for event in finals)


def test_as_fast_as_possible_there_are_finals_only():
    room = Room("." * 20 + pattern(3.0, 2.0), as_fast_as_possible=True)
    assert not room.of(final=False)
    assert len(room.decodes) == len(room.of(final=True)) == 1
