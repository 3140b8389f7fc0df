"""Whisper base and tiny.en with their real weights against transformers: speech of people and of a synthesizer.

Slow tier. The recipes fetch the weights (205 MB) into their cache once.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, pipeline
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

from edgemm.bundle.opening import open_bundle
from edgemm.export import families
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.model_plan import Example
from edgemm.export.pipeline import export
from edgemm.model import Model
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.runtimes.base import SessionOptions
from edgemm.tasks.metrics import wer
from tests.rig.speech import flite_corpus, librivox_clips

pytestmark = pytest.mark.slow

MODELS = ("base", "tiny.en")
RUNTIMES = ("onnxruntime", "openvino")
WORDS = 200
RATE_HZ, LONG_S, TIME_TOLERANCE_S = 16_000, 70, 0.021
MAX_WER_LOSS_POINTS = 1.5
TIMED = 6
# Of the words that int8 hears as fp32 does.
MAX_WORD_SHIFT_S, MIN_SHARE_IN_PLACE = 0.1, 0.95


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("whisper")


@pytest.fixture(scope="module")
def checkpoints(place, repository):
    recipe = repository / "samples" / "recipes" / "whisper_ct2.py"
    for name in MODELS:
        command = [sys.executable, str(recipe), name, "--out", str(place / name)]
        subprocess.run(command, check=True, capture_output=True)
    return {name: place / name for name in MODELS}


@pytest.fixture(scope="module")
def bundles(checkpoints, place, repository):
    made = {}
    for name, path in checkpoints.items():
        for precision in ("fp32", "int8"):
            data = [repository / "samples" / "clip"]
            made[name, precision] = place / f"{name}-{precision}"
            export(path, made[name, precision], precision=precision, calibrate_on=data)
    return made


@pytest.fixture(scope="module")
def speech(place):
    clips = librivox_clips() + flite_corpus(place / "speech", WORDS)
    return [(to_mono_16k(*load_audio(path)), text) for path, text in clips]


@pytest.fixture(scope="module")
def original(checkpoints, speech):
    """What transformers hears in each clip: token ids, by model."""

    @cache
    def ask(name):
        plan = families.find("whisper").plan(find_checkpoint(checkpoints[name]))
        return [plan.reference(Example(audio=samples)).tokens for samples, _ in speech]

    return ask


def opened(path: Path, runtime: str, *, exact: bool = True) -> Model:
    return Model(open_bundle(path), runtime=runtime, options=SessionOptions(exact=exact))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_real_speech_gives_the_originals_tokens(bundles, speech, original, name, runtime):
    with opened(bundles[name, "fp32"], runtime) as model:
        heard = [model.transcribe(samples).tokens for samples, _ in speech]
    assert heard == original(name)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_real_long_speech_gives_the_originals_segments(bundles, checkpoints, speech, name, runtime):
    samples = np.concatenate([s for s, _ in speech])[: LONG_S * RATE_HZ]
    network = WhisperForConditionalGeneration.from_pretrained(checkpoints[name], dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor.from_pretrained(checkpoints[name])
    features = extractor(
        samples, sampling_rate=RATE_HZ, return_tensors="pt", truncation=False, padding="longest"
    ).input_features
    task = {} if name.endswith(".en") else {"task": "transcribe"}
    with torch.no_grad():
        out = network.generate(
            input_features=features, do_sample=False, return_timestamps=True, return_segments=True, **task
        )
    expected = [(tuple(s["tokens"].tolist()), float(s["start"]), float(s["end"])) for s in out["segments"][0]]
    with opened(bundles[name, "fp32"], runtime) as model:
        found = model.transcribe(samples)
    assert found.tokens == tuple(t for tokens, _, _ in expected for t in tokens)
    assert [(s.t_start_s, s.t_end_s) for s in found.segments] == [
        pytest.approx((start, end), abs=TIME_TOLERANCE_S) for _, start, end in expected
    ]


@pytest.fixture(scope="module")
def timed(checkpoints, speech):
    """The words of transformers' pipeline with their times, by model: of single clips and of all of them in a row."""

    @cache
    def ask(name):
        path = checkpoints[name]
        hear = pipeline(
            "automatic-speech-recognition",
            model=WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval(),
            tokenizer=WhisperTokenizer.from_pretrained(path),
            feature_extractor=WhisperFeatureExtractor.from_pretrained(path),
        )
        options = {"num_beams": 1} | ({} if name.endswith(".en") else {"task": "transcribe"})
        heard = [
            hear({"raw": samples, "sampling_rate": RATE_HZ}, return_timestamps="word", generate_kwargs=dict(options))
            for samples in to_time(speech)
        ]
        return [[(chunk["text"], *chunk["timestamp"]) for chunk in one["chunks"]] for one in heard]

    return ask


def to_time(speech):
    return [samples for samples, _ in speech[:TIMED]] + [np.concatenate([s for s, _ in speech])[: LONG_S * RATE_HZ]]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_real_words_have_the_originals_times(bundles, speech, timed, name, runtime):
    with opened(bundles[name, "fp32"], runtime) as model:
        heard = [model.transcribe(samples, words=True).words for samples in to_time(speech)]
    for words, expected in zip(heard, timed(name), strict=True):
        assert [w.text for w in words] == [text for text, _, _ in expected]
        for word, (text, start, end) in zip(words, expected, strict=True):
            assert (word.start_s, word.end_s) == pytest.approx((start, end), abs=1e-3), text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_words_stay_in_place(bundles, speech, timed, runtime):
    with opened(bundles["tiny.en", "int8"], runtime, exact=False) as model:
        heard = [model.transcribe(samples, words=True).words for samples in to_time(speech)]
    shifts = [
        abs(word.end_s - end)
        for words, expected in zip(heard, timed("tiny.en"), strict=True)
        if [w.text for w in words] == [text for text, _, _ in expected]
        for word, (_, _, end) in zip(words, expected, strict=True)
    ]
    in_place = sum(s <= MAX_WORD_SHIFT_S for s in shifts) / len(shifts)
    print(f"tiny.en int8 on {runtime}: {in_place:.1%} of {len(shifts)} words within {MAX_WORD_SHIFT_S} s")
    assert len(shifts) > 20
    assert in_place >= MIN_SHARE_IN_PLACE


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", MODELS)
def test_int8_whisper_hears_as_well(bundles, speech, original, name, runtime, record_property):
    with opened(bundles[name, "int8"], runtime, exact=False) as model:
        decode = model.task("transcribe").tokenizer.decode
        heard = [model.transcribe(samples).text for samples, _ in speech]
    said = [text for _, text in speech]
    before, after = wer(said, [decode(list(tokens)) for tokens in original(name)]), wer(said, heard)
    record_property("wer", {"fp32": before, "int8": after})
    print(f"{name} on {runtime}: WER fp32 {before:.2f}, int8 {after:.2f}")
    assert after <= before + MAX_WER_LOSS_POINTS
