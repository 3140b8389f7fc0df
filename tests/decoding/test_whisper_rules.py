"""Whisper's rules in numpy against transformers' logits processors and segment cutting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from edgemm.bundle.spec import GenerationSpec, TimestampSpec
from edgemm.decoding.whisper import prompt_ids, split_window, timestamp_rule

EOS, NO_TIMES, BEGIN, VOCABULARY = 40, 48, 49, 100
SPEC = TimestampSpec(begin=BEGIN, no_timestamps=NO_TIMES, max_initial=10)


def _history(rng, length):
    """Words and time tokens as decoding makes them: times never run backwards."""
    low, out = BEGIN, []
    for _ in range(length):
        if rng.random() < 0.45:
            low = int(rng.integers(low, VOCABULARY))
            out.append(low)
        else:
            out.append(int(rng.integers(0, EOS)))
    return out


@pytest.mark.parametrize("max_initial", [10, 0, None])
@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_timestamp_rule_equals_the_original(max_initial, spread):
    config = GenerationConfig(eos_token_id=EOS, bos_token_id=EOS)
    config.no_timestamps_token_id = NO_TIMES
    config.max_initial_timestamp_index = max_initial
    prompt = [41, 42, 43]
    original = WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
    rule = timestamp_rule(SPEC.model_copy(update={"max_initial": max_initial}), EOS)
    rng = np.random.default_rng(5)
    forced = 0
    for trial in range(400):
        tokens = _history(rng, trial % 9)
        scores = rng.normal(0, spread, VOCABULARY).astype(np.float32)
        scores[rng.integers(0, VOCABULARY, 6)] = -np.inf
        expected = original(torch.tensor([prompt + tokens]), torch.from_numpy(scores[None]).clone())
        rule(tokens, scores)
        np.testing.assert_array_equal(np.isinf(scores), torch.isinf(expected[0]).numpy())
        np.testing.assert_array_equal(scores, expected[0].numpy())
        forced += bool(np.isinf(scores[:BEGIN]).all())
    assert 40 < forced < 400, "both branches are seen"


@pytest.mark.parametrize("frames", [3000, 2999, 1201, 7])
def test_split_window_equals_the_original(frames):
    rng = np.random.default_rng(frames)
    kinds = set()
    for trial in range(300):
        tokens = _history(rng, trial % 14 + 1)
        expected, offset = WhisperForConditionalGeneration._retrieve_segment(
            seek_sequence=torch.tensor(tokens),
            seek_outputs=[None],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=BEGIN,
            seek_num_frames=torch.tensor([frames]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 3),
        )
        spans, moved_s = split_window(tokens, SPEC, frames * 0.01)
        assert [list(s.tokens) for s in spans] == [s["tokens"].tolist() for s in expected]
        for mine, theirs in zip(spans, expected, strict=True):
            times = (float(theirs["start"]), float(theirs["end"]))
            assert (mine.t_start_s, mine.t_end_s) == pytest.approx(times, abs=1e-6)
        assert round(moved_s / 0.01) == int(offset)
        kinds.add((len(spans) > 1, int(offset) == frames))
    assert len(kinds) == 4


def test_nothing_said_is_one_empty_span():
    spans, moved_s = split_window([], SPEC, 30.0)
    assert [s.tokens for s in spans] == [()]
    assert moved_s == 30.0


MULTI = GenerationSpec(
    tasks={"transcribe": 45, "translate": 44},
    languages={"en": 42, "de": 43},
    default_task="transcribe",
    timestamps=SPEC,
)
ENGLISH = GenerationSpec(timestamps=SPEC)


@pytest.mark.parametrize(
    ("spec", "language", "timestamps", "expected"),
    [
        (MULTI, 43, False, [41, 43, 45, NO_TIMES]),
        (MULTI, 43, True, [41, 43, 45]),
        (ENGLISH, None, False, [41, NO_TIMES]),
        (ENGLISH, None, True, [41]),
    ],
)
def test_prompts(spec, language, timestamps, expected):
    assert prompt_ids(41, spec, language=language, timestamps=timestamps) == expected
