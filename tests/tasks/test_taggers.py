"""Taggers of pictures, clips and sound: class probabilities against transformers' processors and models."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ConvNextForImageClassification,
    Dinov2ForImageClassification,
    Dinov2Model,
    EfficientNetForImageClassification,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgemm.errors import InputError
from tests.export.exported import RATE_HZ, RUNTIMES, checkpoint, model, picture, sound

PROBABILITY = 1e-4
COSINE = 0.9999
ORIGINALS = {
    "vit": (ViTForImageClassification, ViTImageProcessorPil),
    "vit_several": (ViTForImageClassification, ViTImageProcessorPil),
    "dinov2": (Dinov2ForImageClassification, BitImageProcessorPil),
    "dinov2_features": (Dinov2Model, BitImageProcessorPil),
    "convnext": (ConvNextForImageClassification, ConvNextImageProcessorPil),
    "efficientnet_b": (EfficientNetForImageClassification, EfficientNetImageProcessorPil),
    "videomae": (VideoMAEForVideoClassification, VideoMAEImageProcessorPil),
    "ast": (ASTForAudioClassification, ASTFeatureExtractor),
}
PICTURES = ["vit", "vit_several", "dinov2", "convnext", "efficientnet_b"]
SIZES = [(1, 1), (31, 33), (7, 300), (300, 7), (100, 61), (32, 32), (480, 640)]
CLASSES = 7


@cache
def original(name):
    cls, processor = ORIGINALS[name]
    return cls.from_pretrained(checkpoint(name)).eval(), processor.from_pretrained(checkpoint(name))


def outputs(name, *things, **options):
    one, processor = original(name)
    with torch.no_grad(), np.errstate(all="ignore"):
        return one(**processor(*things, return_tensors="pt", **options))


def scores(name, *things, **options):
    logits = outputs(name, *things, **options).logits[0]
    several = original(name)[0].config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if several else logits.softmax(-1)).numpy()


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in ORIGINALS}
    yield models
    for one in models.values():
        one.close()


def by_class(labels):
    found = {x.label: x.score for x in labels.labels}
    return [found[f"class {i}"] for i in range(CLASSES)]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_picture_classes(bundles, name, size):
    image = picture(*size)
    expected = scores(name, Image.fromarray(image))
    found = bundles[name].classify(image, top=CLASSES)
    np.testing.assert_allclose(by_class(found), expected, atol=PROBABILITY)
    assert found.labels[0].label == f"class {expected.argmax()}"


@pytest.mark.parametrize("name", PICTURES)
def test_another_picture_is_another_answer(bundles, name):
    first, second = (by_class(bundles[name].classify(picture(40, 40, seed=s), top=CLASSES)) for s in (1, 2))
    assert np.abs(np.subtract(first, second)).max() > 100 * PROBABILITY


def test_several_labels_may_hold_at_once(bundles):
    assert sum(by_class(bundles["vit_several"].classify(picture(40, 40), top=CLASSES))) > 1.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_of_a_tower_without_a_head(bundles, size):
    image = picture(*size)
    expected = outputs("dinov2_features", Image.fromarray(image)).pooler_output[0].numpy()
    found = bundles["dinov2_features"].embed(image).values
    assert float(found @ expected) / np.linalg.norm(expected) >= COSINE


def test_a_tower_alone_ranks_pictures(bundles):
    items = [picture(40, 50, seed=s) for s in range(4)]
    found = bundles["dinov2_features"].retrieve(items[2], items)
    assert found.items[0].index == 2
    assert found.items[0].score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="cannot embed texts: it knows pictures"):
        bundles["dinov2_features"].retrieve("a mug", items)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11, 32])
def test_clip_classes(bundles, count):
    frames = [picture(40 + 3 * i, 60, seed=i) for i in range(count)]
    picks = [frames[i * count // 4] for i in range(4)]
    expected = scores("videomae", [Image.fromarray(x) for x in picks])
    np.testing.assert_allclose(
        by_class(bundles["videomae"].classify(frames=frames, top=CLASSES)), expected, atol=PROBABILITY
    )
    assert (
        np.abs(expected - scores("videomae", [Image.fromarray(x) for x in picks[::-1]])).max() > PROBABILITY
        or count < 2
    )


@pytest.mark.parametrize("seconds", [0.03, 0.5, 0.96, 1.0, 3.3])
def test_sound_classes(bundles, seconds):
    samples = sound(seconds, seed=round(seconds * 10))
    expected = scores("ast", samples, sampling_rate=RATE_HZ)
    found = bundles["ast"].classify(audio=samples, sample_rate_hz=RATE_HZ, top=CLASSES)
    np.testing.assert_allclose(by_class(found), expected, atol=PROBABILITY)


def test_sound_of_another_rate_and_width_is_the_same_sound(bundles):
    samples = (np.stack([sound(1.0)] * 2, 1) * 32767).astype(np.int16)
    expected = by_class(bundles["ast"].classify(audio=samples[:, 0] / np.float32(32768), top=CLASSES))
    found = by_class(bundles["ast"].classify(audio=samples, top=CLASSES))
    np.testing.assert_allclose(found, expected, atol=PROBABILITY)


def test_what_cannot_be_asked(bundles):
    with pytest.raises(InputError, match="takes a picture, not sound"):
        bundles["vit"].classify(audio=sound(1.0))
    with pytest.raises(InputError, match=r"takes a sound \(audio=…\), which was not given"):
        bundles["ast"].classify(picture(8, 8))
    with pytest.raises(InputError, match="takes a picture, which was not given"):
        bundles["vit"].classify(frames=[picture(8, 8)])
    with pytest.raises(InputError, match="its own 7 labels"):
        bundles["vit"].classify(picture(8, 8), labels=["x"])
    with pytest.raises(InputError, match="too few: expected at least 400"):
        bundles["ast"].classify(audio=np.zeros(399, np.float32))
