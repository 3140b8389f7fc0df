"""Log-mel and raw sound against transformers' feature extractors."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from edgemm.bundle.spec import LogMelSpec, RawAudioSpec
from edgemm.errors import InputError
from edgemm.processing.features import log_mel, mel_filters, prepare, raw

SECONDS = [
    0.0001, 0.001, 0.0125, 0.013, 0.1, 0.25, 0.5, 0.999, 1.0, 1.0001, 2.37, 5.0, 7.77, 10.01, 14.9,
    20.0, 25.123, 29.9, 29.99, 29.9999, 30.0, 30.0001, 31.3, 45.0,
]  # fmt: skip
MEL_TOLERANCE = 1e-4
RAW_TOLERANCE = 1e-6
LONG = {"truncation": False, "padding": "longest"}


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_equal_whisper(n_mels):
    original = WhisperFeatureExtractor(feature_size=n_mels).mel_filters
    np.testing.assert_allclose(mel_filters(LogMelSpec(n_mels=n_mels)), original, atol=1e-8)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("seconds", SECONDS)
def test_log_mel_equals_whisper(sound, seconds, n_mels):
    samples = sound(seconds)
    expected = WhisperFeatureExtractor(feature_size=n_mels)(
        samples, sampling_rate=16_000, return_tensors="np", return_attention_mask=True
    )
    made = log_mel(samples, LogMelSpec(n_mels=n_mels))
    assert made.values.shape == (1, n_mels, 3000)
    assert made.values.dtype == np.float32
    np.testing.assert_allclose(made.values, expected["input_features"], atol=MEL_TOLERANCE)
    np.testing.assert_array_equal(made.attention_mask, expected["attention_mask"])


@pytest.mark.parametrize("seconds", [s for s in SECONDS if s > 0.0125])
def test_whole_log_mel_equals_whisper(sound, seconds):
    samples = sound(seconds)
    expected = WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="np", **LONG)["input_features"]
    made = log_mel(samples, LogMelSpec(), whole=True)
    np.testing.assert_allclose(made.values, expected, atol=MEL_TOLERANCE)


@pytest.mark.parametrize("samples", [np.zeros(16_000), np.ones(16_000), np.eye(1, 8000, 4000)[0]])
def test_silence_a_constant_and_a_click(samples):
    expected = WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="np")
    made = log_mel(samples.astype(np.float32), LogMelSpec())
    np.testing.assert_allclose(made.values, expected["input_features"], atol=MEL_TOLERANCE)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("seconds", SECONDS)
def test_raw_equals_wav2vec2(sound, seconds, normalize):
    samples = sound(seconds)
    original = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    expected = original(samples, sampling_rate=16_000, return_tensors="np")
    made = prepare(samples, RawAudioSpec(normalize=normalize))
    assert made.name == "input_values"
    np.testing.assert_allclose(made.values, expected["input_values"], atol=RAW_TOLERANCE)
    np.testing.assert_array_equal(made.attention_mask, expected["attention_mask"])


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.55])
@pytest.mark.parametrize("multiple", [1, 80, 384])
def test_raw_pads_to_a_multiple_as_wav2vec2(sound, seconds, multiple):
    samples = sound(seconds)
    original = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = original(
        samples,
        sampling_rate=16_000,
        return_tensors="np",
        padding=True,
        pad_to_multiple_of=multiple,
    )
    made = raw(samples, RawAudioSpec(normalize=True, pad_to_multiple=multiple))
    np.testing.assert_allclose(made.values, expected["input_values"], atol=RAW_TOLERANCE)
    np.testing.assert_array_equal(made.attention_mask, expected["attention_mask"])


def test_raw_bounds(sound):
    spec = RawAudioSpec(min_s=0.5, max_s=1.0)
    short = raw(sound(0.1), spec)
    assert short.values.shape == (1, 8000)
    assert short.attention_mask.sum() == 1600
    assert raw(sound(1.0), spec).values.shape == (1, 16_000)
    with pytest.raises(InputError, match=r"1\.2 s: expected at most 1 s"):
        raw(sound(1.2), spec)


def test_too_little_sound_for_a_whole_spectrogram(sound):
    with pytest.raises(InputError, match="too few"):
        log_mel(sound(0.0125), LogMelSpec(), whole=True)
