"""Pictures for detectors against the processors of transformers: DETR's, YOLOS' and RT-DETR's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from edgemm.bundle.spec import EdgesSpec, ResizeCropSpec
from edgemm.processing.edges import size_of
from edgemm.processing.image import preprocess

SIZES = [
    (1, 1), (2, 3), (31, 33), (33, 31), (7, 90), (90, 7), (63, 65), (64, 64), (64, 100), (100, 64), (65, 200),
    (200, 65), (96, 96), (128, 97), (97, 128), (99, 33), (240, 320), (320, 240), (333, 555), (480, 640), (640, 480),
    (501, 500), (719, 1279), (300, 901),
]  # fmt: skip
TOLERANCE = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORTEST, LONGEST, CANVAS = 64, 97, 128


def detr_spec(**changes):
    values = {"shortest_edge": SHORTEST, "longest_edge": LONGEST, "canvas_px": (CANVAS, CANVAS)}
    return EdgesSpec(**values | {"mean": MEAN, "std": STD} | changes)


@pytest.mark.parametrize("size", SIZES)
def test_a_padded_picture_equals_detr(picture, size):
    image = picture(*size)
    original = DetrImageProcessorPil(
        size={"shortest_edge": SHORTEST, "longest_edge": LONGEST}, pad_size={"height": CANVAS, "width": CANVAS}
    )
    expected = original(Image.fromarray(image), return_tensors="np")
    made = preprocess(image, detr_spec())
    assert made.pixel_values.shape == (1, 3, CANVAS, CANVAS)
    np.testing.assert_allclose(made.pixel_values, expected["pixel_values"], atol=TOLERANCE)
    np.testing.assert_array_equal(made.pixel_mask, expected["pixel_mask"])


@pytest.mark.parametrize("size", [s for s in SIZES if min(s) > 1 and max(s) / min(s) < 12])
def test_multiples_of_patches_equal_yolos(picture, size):
    image = picture(*size)
    original = YolosImageProcessorPil(size={"shortest_edge": SHORTEST, "longest_edge": LONGEST})
    expected = original(Image.fromarray(image), return_tensors="np")["pixel_values"]
    made = preprocess(image, detr_spec(multiple_px=16, canvas_px=None))
    assert made.pixel_values.shape == expected.shape
    np.testing.assert_allclose(made.pixel_values, expected, atol=TOLERANCE)
    assert made.pixel_mask.all()


@pytest.mark.parametrize("size", SIZES)
def test_a_stretched_picture_equals_rt_detr(picture, size):
    image = picture(*size)
    original = RTDetrImageProcessorPil(size={"height": 96, "width": 64})
    expected = original(Image.fromarray(image), return_tensors="np")["pixel_values"]
    made = preprocess(image, ResizeCropSpec(height_px=96, width_px=64, resample="bilinear"))
    np.testing.assert_allclose(made.pixel_values, expected, atol=TOLERANCE)


@pytest.mark.parametrize("size", [s for s in SIZES if max(s) / min(s) < 60])
def test_a_picture_in_a_canvas_equals_rt_detr_with_padding(picture, size):
    image = picture(*size)
    original = RTDetrImageProcessorPil(
        size={"max_height": 96, "max_width": 64}, do_pad=True, pad_size={"height": 96, "width": 64}
    )
    expected = original(Image.fromarray(image), return_tensors="np")
    made = preprocess(image, EdgesSpec(longest_edge=96, canvas_px=(96, 64)))
    np.testing.assert_allclose(made.pixel_values, expected["pixel_values"], atol=TOLERANCE)
    np.testing.assert_array_equal(made.pixel_mask, expected["pixel_mask"])


@pytest.mark.parametrize("size", [(1, 16384), (16384, 1), (3, 4000), (1405, 10)])
def test_very_long_pictures_stay_on_the_canvas(size):
    spec = detr_spec(shortest_edge=800, longest_edge=1333, canvas_px=(1344, 1344))
    height, width = size_of(size, spec)
    assert 1 <= height <= 1344
    assert 1 <= width <= 1344


@pytest.mark.parametrize("changes", [{"shortest_edge": None, "canvas_px": None}, {"canvas_px": (96, 128)}])
def test_edges_that_cannot_be_are_refused(changes):
    with pytest.raises(ValidationError, match="canvas"):
        detr_spec(**changes)
