"""Pictures for chat models and captioners against the processors of transformers, with what the export writes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image
from transformers import BlipImageProcessorPil, ViTImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from edgemm.bundle.spec import PatchesSpec
from edgemm.errors import InputError
from edgemm.processing.image import preprocess
from edgemm.processing.patches import picture_chunks
from tests.export.exported import checkpoint, plan

# Height and width.
SIZES = [
    (1, 1), (2, 3), (31, 33), (33, 31), (7, 90), (90, 7), (15, 17), (32, 32), (63, 65), (64, 64), (64, 100),
    (100, 64), (65, 200), (200, 65), (96, 96), (128, 97), (97, 128), (99, 33), (240, 320), (333, 555), (481, 640),
    (501, 500), (719, 1279), (300, 901),
]  # fmt: skip
TOLERANCE = 1e-6
PROCESSORS = {
    "idefics3": Idefics3ImageProcessorPil,
    "llava": CLIPImageProcessorPil,
    "llava_siglip": SiglipImageProcessorPil,
    "llava_onevision": LlavaOnevisionImageProcessorPil,
    "gemma3": Gemma3ImageProcessorPil,
    "paligemma": SiglipImageProcessorPil,
    "florence2": CLIPImageProcessorPil,
    "blip": BlipImageProcessorPil,
    "trocr": ViTImageProcessorPil,
}


@cache
def processor(name):
    return PROCESSORS[name].from_pretrained(checkpoint(name))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processors(picture, name, size):
    image = picture(*size)
    expected = processor(name)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    made = preprocess(image, plan(name).processing.image).pixel_values
    np.testing.assert_allclose(made, np.asarray(expected).reshape(made.shape), atol=TOLERANCE)


# Patch, blocks, and the pixels of a picture at least and at most: as published, and narrow ones.
PATCHES = [(14, 2, 56 * 56, 28 * 28 * 1280), (16, 2, 64 * 64, 300_000), (14, 2, 40_000, 50_000), (4, 2, 256, 2560)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("settings", PATCHES, ids=str)
def test_patches_equal_qwens_processor(picture, settings, size):
    image, (patch, merge, least, most) = picture(*size), settings
    original = Qwen2VLImageProcessorPil(
        size={"shortest_edge": least, "longest_edge": most}, patch_size=patch, merge_size=merge, temporal_patch_size=2
    )
    expected = original(Image.fromarray(image), return_tensors="np")
    spec = PatchesSpec(
        patch_px=patch, merge=merge, temporal_patch=2, min_pixels=least, max_pixels=most, video_min_pixels=least,
        video_max_pixels=most, rotary_dim=8, mean=tuple(original.image_mean), std=tuple(original.image_std),
    )  # fmt: skip
    made = picture_chunks(image, spec)
    assert [1, made.rows, made.columns] == expected["image_grid_thw"][0].tolist()
    np.testing.assert_allclose(made.pixel_values[0], expected["pixel_values"], atol=TOLERANCE)


def test_a_strip_is_refused_as_the_processor_does(picture):
    image = picture(1, 300)
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        Qwen2VLImageProcessorPil()(Image.fromarray(image))
    with pytest.raises(InputError, match="expected an aspect of at most 200"):
        picture_chunks(image, plan("qwen2_vl").processing.image)
