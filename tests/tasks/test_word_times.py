"""Times of words: the bundle's against transformers' `generate(return_token_timestamps=True)` and its pipeline."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, pipeline
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer, _combine_tokens_into_words

from edgemm.errors import TaskUnavailable
from tests.export.exported import RATE_HZ, RUNTIMES, checkpoint, model, sound

TOLERANCE_S = 1e-3
NAMES = ("whisper", "whisper_en")
# Less than a window, a window, two and more; windows with one and with several segments. No window begins behind the
# sound: there transformers cuts the attention from the wrong end.
CASES = [
    ("whisper", 12.0, 3, "ja", 1),
    ("whisper", 12.0, 1, "ja", 3),
    ("whisper", 25.0, 2, "de", 1),
    ("whisper", 30.0, 1, "fr", 1),
    ("whisper", 33.0, 1, "de", 3),
    ("whisper", 64.0, 4, "ja", 1),
    ("whisper", 64.0, 4, "fr", 3),
    ("whisper_en", 2.0, 4, None, 1),
    ("whisper_en", 9.77, 1, None, 1),
    ("whisper_en", 11.0, 4, None, 3),
]


@cache
def whisper(name):
    path = checkpoint(name)
    original = WhisperForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return original, WhisperFeatureExtractor.from_pretrained(path), WhisperTokenizer.from_pretrained(path)


def _features(name, samples):
    original, extractor, _ = whisper(name)
    window = 2 * original.config.max_source_positions
    long = {"truncation": False, "padding": "longest"} if len(samples) // 160 > window else {}
    made = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True, **long)
    return {"input_features": made.input_features, "attention_mask": made.attention_mask}


@cache
def expected(name, seconds, seed, language, beams):
    """Words as (text, start, end): every segment's tokens grouped by transformers, timed by its `generate`."""
    original, _, tokenizer = whisper(name)
    options = {"language": language, "task": "transcribe"} if language else {}
    with torch.no_grad():
        out = original.generate(
            **_features(name, sound(seconds, seed)),
            do_sample=False,
            num_beams=beams,
            return_timestamps=True,
            return_segments=True,
            return_token_timestamps=True,
            **options,
        )
    end = original.generation_config.eos_token_id  # the special tokens come after the words
    written = {"ja": "japanese"}.get(language, "english")
    words = []
    for segment in out["segments"][0]:
        tokens, times = segment["tokens"].tolist(), segment["token_timestamps"].tolist()
        # Every segment begins with a time token, whose end is the beginning of the first word.
        places = [i for i, token in enumerate(tokens) if token < end]
        texts, _, groups = _combine_tokens_into_words(tokenizer, [tokens[i] for i in places], written)
        words += [
            (text, times[places[group[0]] - 1], times[places[group[-1]]])
            for text, group in zip(texts, groups, strict=True)
        ]
    return tuple(t for s in out["segments"][0] for t in s["tokens"].tolist()), words


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in (*NAMES, "moonshine")}
    yield models
    for one in models.values():
        one.close()


def _same(found, wanted):
    assert [w.text for w in found] == [text for text, _, _ in wanted]
    for word, (text, start, end) in zip(found, wanted, strict=True):
        assert (word.start_s, word.end_s) == pytest.approx((start, end), abs=TOLERANCE_S), text


@pytest.mark.parametrize(("name", "seconds", "seed", "language", "beams"), CASES)
def test_words_equal_generates(bundles, name, seconds, seed, language, beams):
    tokens, wanted = expected(name, seconds, seed, language, beams)
    found = bundles[name].transcribe(sound(seconds, seed), language=language, words=True, beams=beams)
    assert found.tokens == tokens
    _same(found.words, wanted)
    assert len({w.end_s for w in found.words}) > 2, "times that are all alike would hide an error"


@pytest.mark.parametrize(("name", "seconds", "seed"), [("whisper_en", 2.0, 4), ("whisper_en", 3.5, 3)])
def test_words_equal_the_pipelines(bundles, name, seconds, seed):
    original, extractor, tokenizer = whisper(name)
    hear = pipeline("automatic-speech-recognition", model=original, tokenizer=tokenizer, feature_extractor=extractor)
    samples = sound(seconds, seed)
    said = hear({"raw": samples, "sampling_rate": RATE_HZ}, return_timestamps="word", generate_kwargs={"num_beams": 1})
    wanted = [(chunk["text"], *chunk["timestamp"]) for chunk in said["chunks"]]
    _same(bundles[name].transcribe(samples, words=True).words, wanted)


def test_words_that_nobody_asked_for(bundles):
    samples = sound(3.5, 3)
    before = bundles["whisper_en"].transcribe(samples)
    assert before.words == ()
    assert bundles["whisper_en"].transcribe(samples, words=True).words
    after = bundles["whisper_en"].transcribe(samples)
    assert (after.tokens, after.segments, after.words) == (before.tokens, before.segments, ())


def test_a_model_without_alignment(bundles):
    with pytest.raises(TaskUnavailable, match=r"alignment.*edgemm export"):
        bundles["moonshine"].transcribe(sound(1.0), words=True)
