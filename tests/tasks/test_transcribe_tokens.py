"""Whisper and Moonshine: transcripts of the bundle against transformers' extractors and `generate`."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import (
    AutoTokenizer,
    MoonshineForConditionalGeneration,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from edgemm.errors import InputError
from tests.export.exported import RATE_HZ, RUNTIMES, checkpoint, model, sound

TIME_TOLERANCE_S = 1e-3
MIN_DISTINCT = 6


@cache
def whisper(name):
    path = checkpoint(name)
    original = WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    return original, WhisperFeatureExtractor.from_pretrained(path)


@cache
def short(name, seconds, seed, **options):
    """`generate` on one window, without times: the ids between prompt and end."""
    original, extractor = whisper(name)
    samples = sound(seconds, seed)
    features = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt").input_features
    with torch.no_grad():
        ids = original.generate(input_features=features, do_sample=False, **options)[0].tolist()
    settings = original.generation_config
    if ids[:1] == [settings.decoder_start_token_id]:
        ids = ids[ids.index(settings.no_timestamps_token_id) + 1 :]
    eos = settings.eos_token_id
    return tuple(ids[: ids.index(eos)] if eos in ids else ids)


@cache
def long(name, seconds, seed, **options):
    """`generate` on the whole spectrogram: segments as (tokens, start, end)."""
    original, extractor = whisper(name)
    samples = sound(seconds, seed)
    features = extractor(
        samples, sampling_rate=RATE_HZ, return_tensors="pt", truncation=False, padding="longest"
    ).input_features
    with torch.no_grad():
        out = original.generate(
            input_features=features,
            do_sample=False,
            return_timestamps=True,
            return_segments=True,
            **options,
        )
    return [(tuple(s["tokens"].tolist()), float(s["start"]), float(s["end"])) for s in out["segments"][0]]


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def bundles(runtime):
    models = {name: model(name, runtime) for name in ("whisper", "whisper_en", "moonshine")}
    yield models
    for one in models.values():
        one.close()


@pytest.mark.parametrize(("language", "seconds"), [("de", 3.0), ("ja", 0.5), (None, 0.5), (None, 29.99), (None, 30.0)])
def test_whisper_window(bundles, language, seconds):
    samples = sound(seconds, int(seconds))
    options = {"language": language} if language else {}
    expected = short("whisper", seconds, int(seconds), task="transcribe", **options)
    found = bundles["whisper"].transcribe(samples, language=language)
    assert found.tokens == expected
    assert len(set(expected)) >= MIN_DISTINCT, "the text is a loop: it could hide a wrong cache"
    assert found.segments[0].t_start_s == 0.0
    assert found.segments[0].t_end_s == pytest.approx(min(seconds, 30.0), abs=TIME_TOLERANCE_S)


@pytest.mark.parametrize("seconds", [0.3, 3.999, 4.0])
def test_english_whisper_window(bundles, seconds):
    found = bundles["whisper_en"].transcribe(sound(seconds, 1))
    assert found.tokens == short("whisper_en", seconds, 1)


def test_detected_language(bundles):
    original, extractor = whisper("whisper")
    one = bundles["whisper"].task("transcribe")
    heard = set()
    for seed in range(6):
        samples = sound(2.0 + seed, seed=seed)
        features = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt").input_features
        expected = int(original.detect_language(features)[0])
        cross = one._encode({"input_features": features.numpy()})
        assert one._language(cross, None) == expected
        heard.add(expected)
    assert heard <= set(original.generation_config.lang_to_id.values())


def test_unknown_language(bundles):
    with pytest.raises(InputError, match=r"'xx'.*\bfr\b"):
        bundles["whisper"].transcribe(sound(1.0), language="xx")


def _same_segments(found, expected):
    assert found.tokens == tuple(t for tokens, _, _ in expected for t in tokens)
    times = [(s.t_start_s, s.t_end_s) for s in found.segments]
    assert len(times) == len(expected)
    for mine, (_, start, end) in zip(times, expected, strict=True):
        assert mine == pytest.approx((start, end), abs=TIME_TOLERANCE_S)


@pytest.mark.parametrize("seconds", [30.01, 70.0])
@pytest.mark.parametrize("language", ["fr", None])
def test_long_whisper(bundles, seconds, language):
    samples = sound(seconds, 9)
    options = {"language": language} if language else {}
    expected = long("whisper", seconds, 9, task="transcribe", **options)
    _same_segments(bundles["whisper"].transcribe(samples, language=language), expected)


@pytest.mark.parametrize(("seconds", "seed"), [(4.009, 1), (4.01, 1), (4.02, 2), (4.5, 1), (9.77, 2), (23.0, 1)])
def test_long_english_whisper(bundles, seconds, seed):
    """4.009 s is one frame's part over the window: still one window."""
    samples = sound(seconds, seed)
    found = bundles["whisper_en"].transcribe(samples)
    if len(samples) // 160 <= 400:
        assert found.tokens == short("whisper_en", seconds, seed)
    else:
        _same_segments(found, long("whisper_en", seconds, seed))


def test_long_text_is_the_text_of_the_words(bundles):
    one = bundles["whisper_en"]
    found = one.transcribe(sound(11.0, seed=3))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("whisper_en"))
    first_stamp = tokenizer.convert_tokens_to_ids("<|0.00|>")
    words = [t for t in found.tokens if t < first_stamp]
    assert found.text == tokenizer.decode(words, skip_special_tokens=True).strip()
    assert 0 < found.confidence < 1


@pytest.mark.parametrize("seconds", [0.1, 0.5, 3.33, 12.0])
def test_moonshine(bundles, seconds):
    original = MoonshineForConditionalGeneration.from_pretrained(checkpoint("moonshine")).eval()
    samples = sound(seconds, seed=int(seconds) + 20)
    limit = min(int(len(samples) / RATE_HZ * 6.5) + 1, 95)
    with torch.no_grad():
        ids = original.generate(input_values=torch.from_numpy(samples)[None], max_new_tokens=limit, do_sample=False)[
            0
        ].tolist()
    expected = tuple(ids[1 : ids.index(2)] if 2 in ids else ids[1:])
    found = bundles["moonshine"].transcribe(samples)
    assert found.tokens == expected
    if seconds > 3:
        assert len(set(expected)) >= MIN_DISTINCT, "the text is a loop: it could hide a wrong cache"


def test_a_second_transcript_is_the_first(bundles):
    for name, one in bundles.items():
        samples = sound(2.0, seed=5)
        first = one.transcribe(samples).tokens
        one.transcribe(sound(3.0, seed=6))
        assert one.transcribe(samples).tokens == first, name
