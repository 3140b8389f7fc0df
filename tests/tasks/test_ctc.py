"""wav2vec 2.0 and HuBERT: transcripts of the bundle against transformers' extractor, model and CTC tokenizer."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from transformers import HubertForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from edgemm.bundle.spec import CtcSpec
from edgemm.errors import CheckpointError
from edgemm.export.pipeline import export
from edgemm.tasks.transcribe import quiet_cuts
from edgemm.tasks.transcribe_ctc import CtcVocabulary
from tests.export.exported import RATE_HZ, RUNTIMES, checkpoint, model, sound
from tests.tiny.taggers import ctc

MODELS = {"wav2vec2": Wav2Vec2ForCTC, "wav2vec2_layer": Wav2Vec2ForCTC, "hubert": HubertForCTC}
LOGITS = 1e-4
MIN_DISTINCT = 4
BLANK = 0


@cache
def original(name):
    path = checkpoint(name)
    return (
        MODELS[name].from_pretrained(path).eval(),
        Wav2Vec2FeatureExtractor.from_pretrained(path),
        Wav2Vec2CTCTokenizer.from_pretrained(path),
    )


def logits_of(name, samples):
    one, extractor, _ = original(name)
    with torch.no_grad():
        return one(**extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")).logits[0].numpy()


def said(name, samples):
    """The collapsed ids and the text of one stretch."""
    ids = logits_of(name, samples).argmax(-1).tolist()
    tokens = tuple(token for token, _ in itertools.groupby(ids) if token != BLANK)
    return tokens, original(name)[2].decode(ids)


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in MODELS}
    yield models
    for one in models.values():
        one.close()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.5, 1.234, 3.0, 7.77])
def test_transcript(bundles, name, seconds):
    samples = sound(seconds, seed=round(seconds * 100))
    expected, text = said(name, samples)
    logits = bundles[name].task("transcribe").logits(samples)
    np.testing.assert_allclose(logits, logits_of(name, samples), atol=LOGITS * max(1.0, np.abs(logits).max()))
    found = bundles[name].transcribe(samples)
    assert found.tokens == expected
    assert found.text == text
    assert found.segments[0].t_end_s == pytest.approx(seconds, abs=1e-3)
    assert 0 < found.confidence <= 1
    if seconds > 3:
        assert len(set(expected)) >= MIN_DISTINCT


def test_sound_shorter_than_one_frame_is_padded(bundles):
    found = bundles["hubert"].transcribe(sound(0.001))
    assert len(found.tokens) <= 1


@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
def test_long_sound_is_cut_at_quiet_places(bundles, name):
    samples = sound(70.0, seed=4)
    cuts = list(quiet_cuts(samples, 30 * RATE_HZ))
    expected = [said(name, samples[first:last]) for first, last in cuts]
    found = bundles[name].transcribe(samples)
    assert len(found.segments) == len(cuts) >= 3
    assert found.tokens == tuple(t for tokens, _ in expected for t in tokens)
    assert found.text == " ".join(text for _, text in expected if text)
    assert [s.t_start_s for s in found.segments] == pytest.approx([first / RATE_HZ for first, _ in cuts], abs=1e-3)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_decoding_equals_the_tokenizer(tmp_path, lower, clean):
    """Random frames, with doubled letters, special tokens and delimiters at the ends."""
    path = ctc(tmp_path / "checkpoint", "hubert")
    tokenizer = Wav2Vec2CTCTokenizer(path / "vocab.json", do_lower_case=lower, clean_up_tokenization_spaces=clean)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vocabulary = CtcVocabulary(names, CtcSpec(blank=BLANK, lower_case=lower, clean_up=clean))
    rng = np.random.default_rng(0)
    for length in [0, 1, 2, 5, 40, 200] * 5:
        ids = rng.integers(0, len(names), length).repeat(rng.integers(1, 4))
        kept = [int(ids[frames[0]]) for frames in vocabulary.collapse(ids)]
        assert vocabulary.decode(kept) == tokenizer.decode(ids.tolist())


def test_a_checkpoint_without_its_vocabulary(tmp_path):
    path = ctc(tmp_path / "checkpoint", "wav2vec2")
    (path / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="no vocabulary that can be read"):
        export(path, tmp_path / "bundle")
