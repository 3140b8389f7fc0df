"""CLIP, SigLIP, SigLIP 2 and CLAP: embeddings, zero-shot probabilities and rankings against transformers' models."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ClapFeatureExtractor,
    ClapModel,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Model,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from edgemm.errors import CheckpointError, InputError
from edgemm.export.pipeline import export
from edgemm.tasks.metrics import ndcg_at, recall_at
from tests.export.exported import RUNTIMES, checkpoint, model, picture
from tests.tiny.dual import clap

COSINE = 0.9999
PROBABILITY = 1e-4
# Height and width: one pixel, odd edges, strips, larger and smaller than the model's.
SIZES = [(1, 1), (31, 33), (7, 300), (300, 60), (36, 36), (100, 61), (480, 640)]
SECONDS = [0.05, 0.7, 1.99, 2.0]
TEXTS = [
    "a",
    "A Red Mug",
    "größe, naïve café?\n",
    "the quick brown fox jumps over the lazy dog while seven robots watch from the window and walk on in the rain",
]
LABELS = ["red car", "blue door", "two people in the rain", "x", "the kitchen", "a green light"]
PICTURES = {
    "clip": (CLIPModel, CLIPImageProcessorPil),
    "clip_legacy": (CLIPModel, CLIPImageProcessorPil),
    "siglip": (SiglipModel, SiglipImageProcessorPil),
    "siglip2": (Siglip2Model, Siglip2ImageProcessorPil),
}
CLAP_RATE_HZ = 48_000
TEXT_TOKENS = 24


@cache
def original(name):
    path = checkpoint(name)
    cls, processor = PICTURES.get(name, (ClapModel, ClapFeatureExtractor))
    return (
        cls.from_pretrained(path).eval(),
        processor.from_pretrained(path),
        PreTrainedTokenizerFast.from_pretrained(path),
    )


def tokens(name, texts):
    """What the family's processor makes of texts: SigLIP's are padded and have no mask, SigLIP 2's are lower-case."""
    tokenizer = original(name)[2]
    texts = [text.lower() for text in texts] if name == "siglip2" else texts
    padding = "max_length" if name.startswith("siglip") else True
    made = tokenizer(texts, padding=padding, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
    keep = ("input_ids",) if name.startswith("siglip") else ("input_ids", "attention_mask")
    return {k: made[k] for k in keep}


def seen(name, thing):
    processor = original(name)[1]
    if name == "clap":
        return processor(thing, sampling_rate=CLAP_RATE_HZ, return_tensors="pt")
    return processor(Image.fromarray(thing), return_tensors="pt")


def unit(output):
    return torch.nn.functional.normalize(output.pooler_output, dim=-1).numpy()


def texts_of(name, texts):
    with torch.no_grad():
        return unit(original(name)[0].get_text_features(**tokens(name, texts)))


def features_of(name, thing):
    one = original(name)[0]
    with torch.no_grad():
        inputs = dict(seen(name, thing))
        inputs.pop("is_longer", None)
        return unit(one.get_audio_features(**inputs) if name == "clap" else one.get_image_features(**inputs))[0]


def probabilities(name, thing, sentences):
    inputs = {**seen(name, thing), **tokens(name, sentences)}
    with torch.no_grad():
        out = original(name)[0](**inputs)
    logits = out.logits_per_audio if name == "clap" else out.logits_per_image
    scores = logits[0].sigmoid() if name.startswith("siglip") else logits[0].softmax(-1)
    return scores.numpy()


def tone(seconds, seed=0):
    """Sound at CLAP's own rate."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * CLAP_RATE_HZ)) / CLAP_RATE_HZ
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 3000) * t * (1 + t / 4))
    return (wave + rng.normal(0, 0.02, t.shape)).astype(np.float32)


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in (*PICTURES, "clap")}
    yield models
    for one in models.values():
        one.close()


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_picture_embedding(bundles, name, size):
    image = picture(*size)
    found = bundles[name].embed(image).values
    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)
    assert float(found @ features_of(name, image)) >= COSINE


@pytest.mark.parametrize("seconds", SECONDS)
def test_sound_embedding(bundles, seconds):
    samples = tone(seconds)
    found = bundles["clap"].embed(audio=samples, sample_rate_hz=CLAP_RATE_HZ).values
    assert float(found @ features_of("clap", samples)) >= COSINE


def test_of_long_sound_the_beginning_counts(bundles):
    samples = tone(5.0)
    found = bundles["clap"].embed(audio=samples, sample_rate_hz=CLAP_RATE_HZ).values
    begin = samples[: 2 * CLAP_RATE_HZ]
    assert float(found @ features_of("clap", begin)) >= COSINE


@pytest.mark.parametrize("name", [*PICTURES, "clap"])
def test_text_embeddings_alone_and_together(bundles, name):
    expected = texts_of(name, TEXTS * 3)
    encoder = bundles[name].task("embed")
    together = encoder.texts(TEXTS * 3)
    alone = np.stack([bundles[name].embed(text=text).values for text in TEXTS])
    assert (together * expected).sum(axis=1).min() >= COSINE
    assert (alone * expected[: len(TEXTS)]).sum(axis=1).min() >= COSINE


@pytest.mark.parametrize("name", [*PICTURES, "clap"])
@pytest.mark.parametrize("template", [None, "{}", "a drawing: {}, seen from above"])
def test_zero_shot_probabilities(bundles, name, template):
    default = "This is a sound of {}." if name == "clap" else "This is a photo of {}."
    sentences = [(template or default).format(label) for label in LABELS]
    thing = tone(1.1) if name == "clap" else picture(50, 40, seed=3)
    expected = probabilities(name, thing, sentences)
    given = {"audio": thing, "sample_rate_hz": CLAP_RATE_HZ} if name == "clap" else {"image": thing}
    found = bundles[name].classify(**given, labels=LABELS, template=template, top=len(LABELS))
    by_label = {x.label: x.score for x in found.labels}
    np.testing.assert_allclose([by_label[label] for label in LABELS], expected, atol=PROBABILITY)
    assert [x.label for x in found.labels] == [LABELS[i] for i in np.argsort(-expected, kind="stable")]
    assert expected.max() - expected.min() > 100 * PROBABILITY


@pytest.mark.parametrize("name", PICTURES)
def test_ranking_of_texts_pictures_and_embeddings(bundles, name, tmp_path):
    one, image = bundles[name], picture(60, 60, seed=5)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), picture(40, 70, seed=6)[..., ::-1])
    items = [*LABELS, Path(file), picture(33, 90, seed=7), one.embed(picture(20, 20))]
    pictures = [features_of(name, x) for x in (picture(40, 70, seed=6), picture(33, 90, seed=7), picture(20, 20))]
    cosines = np.concatenate([texts_of(name, LABELS), pictures]) @ features_of(name, image)
    found = one.retrieve(image, items)
    assert [x.index for x in found.items] == list(np.argsort(-cosines, kind="stable"))
    np.testing.assert_allclose([x.score for x in found.items], np.sort(cosines)[::-1], atol=PROBABILITY)
    assert found.items[0].item is items[found.items[0].index]
    assert [x.index for x in one.recommend(image, items, top=2).items] == [x.index for x in found.items[:2]]


def test_a_list_is_what_someone_liked(bundles):
    liked = [picture(30, 30, seed=1), "a red mug"]
    mean = (features_of("clip", liked[0]) + texts_of("clip", liked[1:])[0]) / 2
    cosines = texts_of("clip", LABELS) @ (mean / np.linalg.norm(mean))
    found = bundles["clip"].recommend(liked, LABELS)
    assert [x.index for x in found.items] == list(np.argsort(-cosines, kind="stable"))


def test_sounds_are_ranked_too(bundles):
    items = [(tone(1.0, seed), CLAP_RATE_HZ) for seed in range(4)]
    cosines = np.stack([features_of("clap", samples) for samples, _ in items]) @ texts_of("clap", ["a red mug"])[0]
    found = bundles["clap"].retrieve("a red mug", items)
    assert [x.index for x in found.items] == list(np.argsort(-cosines, kind="stable"))


def test_what_cannot_be_asked(bundles):
    clip, sound = bundles["clip"], np.zeros(1000, np.float32)
    with pytest.raises(InputError, match="no labels"):
        clip.classify(picture(8, 8))
    with pytest.raises(InputError, match=r"'a photo' has no \{\}"):
        clip.classify(picture(8, 8), labels=["x"], template="a photo")
    with pytest.raises(InputError, match="cannot embed sounds: it knows pictures, texts"):
        clip.embed(audio=sound)
    with pytest.raises(InputError, match="2 things to embed"):
        clip.embed(picture(8, 8), text="x")
    with pytest.raises(InputError, match="no items"):
        clip.retrieve("x", [])
    with pytest.raises(InputError, match="text 1 is empty"):
        clip.retrieve("x", ["y", " "])
    with pytest.raises(InputError, match=r"\[7, 24\] numbers"):
        clip.retrieve("x", ["y", np.ones(7, np.float32)])


def test_a_fused_clap_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="random crops"):
        export(clap(tmp_path / "fused", fused=True), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_recall_and_ndcg_by_hand():
    ranked = [0, 3, 0, 1, 2]
    assert recall_at(ranked, 2) == pytest.approx(100 / 3)
    assert recall_at(ranked, 5) == 100.0
    assert recall_at([0, 0], 2) == 0.0
    # 3/log2(3) + 1/log2(5) over 3 + 2/log2(3) + 1/2
    assert ndcg_at(ranked, 4) == pytest.approx(100 * (3 / 1.5849625 + 1 / 2.3219281) / (3 + 2 / 1.5849625 + 0.5))
    assert ndcg_at(sorted(ranked, reverse=True), 3) == pytest.approx(100.0)
    assert ndcg_at([0.0], 3) == 0.0
