"""What paired encoders take: pictures of CLIP, SigLIP and NaFlex, CLAP's spectrogram, padded texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import ClapFeatureExtractor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from edgemm.bundle.spec import NaFlexSpec, RepeatMelSpec, SimilaritySpec
from edgemm.errors import InputError
from edgemm.export.image_spec import image_spec
from edgemm.processing.features import prepare
from edgemm.processing.image import preprocess
from edgemm.processing.naflex import naflex, position_weights
from edgemm.tasks.dual import padded

SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 5), (7, 300), (300, 7), (15, 16), (16, 15), (17, 900), (31, 33), (33, 31), (64, 64),
    (99, 100), (100, 61), (128, 37), (223, 225), (224, 224), (225, 223), (255, 257), (400, 30), (333, 512),
]  # fmt: skip
SECONDS = [
    0.001, 0.01, 0.0213, 0.1, 0.25, 0.33, 0.5, 0.7, 0.999, 1.0, 1.001, 1.37, 1.5, 1.75, 1.9, 1.99, 1.9999, 2.0,
    0.6667, 0.05,
]  # fmt: skip
PIXEL = 1e-6
POSITION = 5e-6
DECIBEL = 1e-4


def _settings(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    return json.loads((tmp_path / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}),
        CLIPImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),
        SiglipImageProcessorPil(size={"height": 32, "width": 40}),
    ],
    ids=["clip", "clip-crop", "siglip"],
)
def test_pictures(picture, tmp_path, processor, size):
    image = picture(*size)
    spec = image_spec({"resample": 3} | _settings(processor, tmp_path), 32)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(preprocess(image, spec).pixel_values, expected, atol=PIXEL)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("most", [16, 100])
def test_naflex(picture, size, most):
    image = picture(*size)
    expected = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=most)(Image.fromarray(image), return_tensors="np")
    half = (0.5, 0.5, 0.5)
    found = naflex(image, NaFlexSpec(patch_px=8, max_patches=most, grid=4, mean=half, std=half))
    np.testing.assert_allclose(found["pixel_values"], expected["pixel_values"], atol=PIXEL)
    np.testing.assert_array_equal(found["pixel_mask"], expected["pixel_attention_mask"])
    rows, columns = expected["spatial_shapes"][0]
    assert found["pixel_mask"].sum() == rows * columns
    np.testing.assert_array_equal(
        found["aux.position_weights"][0, : rows * columns], position_weights(int(rows), int(columns), 4)
    )


@pytest.mark.parametrize("grid", [1, 3, 4, 16])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 16), (2, 3), (3, 2), (4, 4), (16, 2), (5, 7), (16, 16), (9, 28), (28, 9)]
)
def test_positions_equal_the_resized_table(grid, shape):
    table = torch.randn(grid, grid, 8, generator=torch.Generator().manual_seed(0))
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(table, torch.tensor([shape]), 256)[0]
    found = position_weights(*shape, grid) @ table.flatten(0, 1).numpy()
    np.testing.assert_allclose(found, expected[: len(found)].numpy(), atol=POSITION)


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_positions_of_a_column_are_those_of_a_row(rows):
    """torch 2.13 resizes a table to one column wrongly, so the row of the turned table is what to compare with."""
    table = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    turned = table.transpose(0, 1).contiguous()
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(turned, torch.tensor([(1, rows)]), 64)[0]
    found = position_weights(rows, 1, 4) @ table.flatten(0, 1).numpy()
    np.testing.assert_allclose(found, expected[:rows].numpy(), atol=POSITION)


@pytest.mark.parametrize("fill", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", SECONDS)
def test_clap_spectrogram(sound, seconds, fill):
    samples = sound(seconds, 48_000)
    original = ClapFeatureExtractor(max_length_s=2, truncation="rand_trunc", padding=fill, frequency_min=50)
    expected = original(samples, sampling_rate=48_000, return_tensors="np")["input_features"]
    found = prepare(samples, RepeatMelSpec(chunk_s=2, fill=fill))
    assert found.name == "input_features"
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values[0].T, expected[0, 0], atol=DECIBEL)


def test_of_longer_sound_the_first_window_is_heard(sound):
    samples, spec = sound(5.0, 48_000), RepeatMelSpec(chunk_s=2)
    np.testing.assert_array_equal(prepare(samples, spec).values, prepare(samples[:96_000], spec).values)
    with pytest.raises(InputError, match="empty"):
        prepare(samples[:0], spec)


def test_texts_are_padded_as_the_model_was_trained():
    ids = [[5, 6, 7], [8]]
    longest = padded(ids, SimilaritySpec(text_tokens=8, pad=1))
    np.testing.assert_array_equal(longest["input_ids"], [[5, 6, 7], [8, 1, 1]])
    np.testing.assert_array_equal(longest["attention_mask"], [[1, 1, 1], [1, 0, 0]])
    whole = padded(ids, SimilaritySpec(text_tokens=4, pad=1, pad_texts=True, padding_side="left"))
    np.testing.assert_array_equal(whole["input_ids"], [[1, 5, 6, 7], [1, 1, 1, 8]])
    np.testing.assert_array_equal(whole["attention_mask"], [[0, 1, 1, 1], [0, 0, 0, 1]])
    with pytest.raises(ValidationError, match=r"no \{\} for the label"):
        SimilaritySpec(template="a photo")
