"""What taggers take: pictures of ViT, DINOv2, ConvNeXt, EfficientNet and VideoMAE, AST's filter banks."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers import ASTFeatureExtractor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgemm.bundle.spec import KaldiMelSpec
from edgemm.errors import InputError
from edgemm.export.image_spec import image_spec, share_spec, twice_normalized_spec
from edgemm.processing.features import prepare
from edgemm.processing.image import preprocess, preprocess_many

SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 5), (7, 300), (300, 7), (15, 16), (16, 15), (17, 400), (31, 33), (33, 31), (64, 64),
    (99, 100), (100, 61), (128, 37), (223, 225), (224, 224), (225, 223), (255, 257), (400, 30), (333, 512),
]  # fmt: skip
SECONDS = [
    0.025, 0.026, 0.0349, 0.035, 0.04, 0.1, 0.25, 0.333, 0.5, 0.75, 0.9, 0.96, 0.984, 0.985, 0.99, 1.0, 1.5, 2.37,
    5.0, 10.24,
]  # fmt: skip
PIXEL, LOG_MEL = 1e-6, 1e-5
TWICE = 1e-5
PROCESSORS = {
    "vit": (ViTImageProcessorPil(size={"height": 32, "width": 40}), image_spec),
    "dinov2": (BitImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}), image_spec),
    "convnext": (ConvNextImageProcessorPil(size={"shortest_edge": 32}), share_spec),
    "convnext-0.9": (ConvNextImageProcessorPil(size={"shortest_edge": 56}, crop_pct=0.9), share_spec),
    "convnext-384": (ConvNextImageProcessorPil(size={"shortest_edge": 384}), share_spec),
    "efficientnet": (EfficientNetImageProcessorPil(size={"height": 33, "width": 33}), twice_normalized_spec),
    "efficientnet-once": (
        EfficientNetImageProcessorPil(size={"height": 33, "width": 33}, include_top=False, resample=0),
        twice_normalized_spec,
    ),
    "efficientnet-offset": (
        EfficientNetImageProcessorPil(size={"height": 33, "width": 33}, rescale_offset=True, rescale_factor=1 / 127.5),
        twice_normalized_spec,
    ),
}


def _spec(processor, make, folder):
    processor.save_pretrained(folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    return make(config) if make is share_spec else make(config, 32)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures(picture, tmp_path, name, size):
    processor, make = PROCESSORS[name]
    image = picture(*size)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    found = preprocess(image, _spec(processor, make, tmp_path)).pixel_values
    np.testing.assert_allclose(found, expected, atol=TWICE if make is twice_normalized_spec else PIXEL)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_clips(picture, tmp_path, size):
    processor = VideoMAEImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    frames = [picture(*size), picture(size[1], size[0])]
    expected = processor([Image.fromarray(x) for x in frames], return_tensors="np")["pixel_values"]
    found = preprocess_many(frames, _spec(processor, image_spec, tmp_path)).pixel_values
    np.testing.assert_allclose(found[None], expected, atol=PIXEL)


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize(("bands", "frames", "normalize"), [(128, 1024, True), (32, 96, True), (32, 96, False)])
def test_filter_banks(sound, seconds, bands, frames, normalize):
    samples = sound(seconds)
    with warnings.catch_warnings():
        # At 128 bands some filters lie between two bins, in the published checkpoints too.
        warnings.simplefilter("ignore", UserWarning)
        original = ASTFeatureExtractor(num_mel_bins=bands, max_length=frames, do_normalize=normalize)
    expected = original(samples, sampling_rate=16_000, return_tensors="np")["input_values"]
    statistics = {"mean": original.mean, "std": original.std} if normalize else {}
    found = prepare(samples, KaldiMelSpec(n_mels=bands, frames=frames, **statistics))
    assert found.name == "input_features"
    assert found.values.shape == (1, bands, frames)
    np.testing.assert_allclose(found.values[0].T, expected[0], atol=LOG_MEL)


def test_silence_and_too_little_sound():
    silent = np.zeros(16_000, np.float32)
    expected = ASTFeatureExtractor(num_mel_bins=32)(silent, sampling_rate=16_000, return_tensors="np")["input_values"]
    found = prepare(silent, KaldiMelSpec(n_mels=32, mean=-4.2677393, std=4.5689974))
    np.testing.assert_allclose(found.values[0].T, expected[0], atol=LOG_MEL)
    with pytest.raises(InputError, match="399 samples are too few: expected at least 400"):
        prepare(silent[:399], KaldiMelSpec())
