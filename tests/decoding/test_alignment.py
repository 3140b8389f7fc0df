"""Aligning tokens with sound in numpy against transformers' median filter, time warping and token times."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from edgemm.decoding.alignment import median_filter, of_sentence, time_warping, token_times

STEP_S = 0.02
LAYERS, HEADS, POSITIONS, PROMPT = 2, 3, 60, 4
CHOSEN = ((0, 2), (1, 0), (1, 1))
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 3), (3, 7), (40, 40), (12, 150), (60, 31)]
COSTS = {
    "random": lambda rng, shape: rng.normal(size=shape),
    "ties": lambda rng, shape: np.round(rng.normal(size=shape)),
    "flat": lambda rng, shape: np.zeros(shape),
    "no numbers": lambda rng, shape: np.full(shape, np.nan),
    "some numbers": lambda rng, shape: np.where(rng.random(shape) < 0.3, np.nan, rng.normal(size=shape)),
    "large": lambda rng, shape: 1e6 + rng.normal(size=shape),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", COSTS)
def test_time_warping_equals_the_original(kind, shape):
    cost = COSTS[kind](np.random.default_rng(sum(shape)), shape)
    for found, expected in zip(time_warping(cost), _dynamic_time_warping(cost), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (2, 3, 4), (1, 5, 40), (3, 70, 301)], ids=str)
@pytest.mark.parametrize("width", [1, 3, 7, 9])
def test_median_filter_equals_the_original(width, shape):
    values = np.random.default_rng(width).normal(size=shape).astype(np.float32)
    for missing in (0.0, 0.2, 0.7):
        values[np.random.default_rng(1).random(shape) < missing] = np.nan
        expected = _median_filter(torch.from_numpy(values), width).numpy()
        np.testing.assert_array_equal(median_filter(values, width), expected)


def _attention(rng, fed, rows=1):
    """cross_attentions of `generate`: for the prompt and for every fed token, the layers' [rows, H, S, T]."""
    sharp = [rng.normal(0, 3, (LAYERS, rows, HEADS, n, POSITIONS)) for n in (PROMPT, *[1] * fed)]
    weights = [torch.softmax(torch.from_numpy(s.astype(np.float32)), -1) for s in sharp]
    return tuple(tuple(step) for step in weights)


def _original(outputs, width, frames=None):
    whisper = SimpleNamespace(config=SimpleNamespace(decoder_layers=LAYERS, median_filter_width=width))
    times = WhisperForConditionalGeneration._extract_token_timestamps(
        whisper, outputs, CHOSEN, num_frames=None if frames is None else torch.tensor([frames]), num_input_ids=PROMPT
    )
    return times[0, PROMPT:].tolist()


def _steps(attention):
    """What the decoder's `alignment` was for every fed token."""
    return [torch.stack([step[layer][:, head] for layer, head in CHOSEN], 1).numpy() for step in attention[1:]]


@pytest.mark.parametrize("frames", [None, 2 * POSITIONS, 2 * POSITIONS - 1, 41, 14, 2])
@pytest.mark.parametrize("fed", [1, 2, 5, 40])
@pytest.mark.parametrize("width", [1, 7])
def test_token_times_equal_the_originals(width, fed, frames):
    attention = _attention(np.random.default_rng(fed), fed)
    outputs = GenerateEncoderDecoderOutput(sequences=torch.zeros(1, PROMPT + fed + 1), cross_attentions=attention)
    expected = _original(outputs, width, frames)
    weights = of_sentence(_steps(attention), [0] * fed)[..., : None if frames is None else frames // 2]
    # With the end token, which was not fed, and without it.
    for tokens in (fed + 1, fed):
        found = token_times(weights, tokens=tokens, step_s=STEP_S, median_width=width)
        np.testing.assert_allclose(found, expected[:tokens], atol=1e-6)


def test_token_times_of_a_beam_equal_the_originals():
    rng, fed, beams = np.random.default_rng(3), 12, 4
    attention = _attention(rng, fed, rows=beams)
    rows = rng.integers(0, beams, fed)
    outputs = GenerateBeamEncoderDecoderOutput(
        sequences=torch.zeros(1, PROMPT + fed + 1),
        cross_attentions=attention,
        beam_indices=torch.tensor([[0, *rows]]),
    )
    found = token_times(of_sentence(_steps(attention), rows), tokens=fed + 1, step_s=STEP_S, median_width=7)
    np.testing.assert_allclose(found, _original(outputs, 7), atol=1e-6)
    other = token_times(of_sentence(_steps(attention), [0] * fed), tokens=fed + 1, step_s=STEP_S, median_width=7)
    assert found != other, "the rows matter"


@pytest.mark.parametrize("shape", [(2, 0, 50), (2, 3, 0), (0, 0, 0)])
def test_nothing_to_align_takes_no_time(shape):
    assert token_times(np.zeros(shape, np.float32), tokens=3, step_s=STEP_S, median_width=7) == (0.0, 0.0, 0.0)


def test_attention_that_never_differs_stays_in_the_sound():
    times = token_times(np.full((2, 4, 20), 0.05, np.float32), tokens=5, step_s=STEP_S, median_width=7)
    assert len(times) == 5
    assert all(0.0 <= t <= 20 * STEP_S for t in times)
