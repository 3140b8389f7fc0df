"""`resize` against Pillow: every filter, awkward sizes, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgemm.errors import InputError
from edgemm.processing.resample import resize

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [
    ((1, 1), (224, 224)),
    ((1, 1), (1, 1)),
    ((3, 1000), (224, 224)),
    ((1000, 3), (224, 224)),
    ((1000, 3), (17, 1)),
    ((3, 1000), (2, 3000)),
    ((7, 5), (64, 48)),
    ((37, 411), (31, 17)),
    ((224, 224), (224, 224)),
    ((225, 223), (224, 224)),
    ((30, 30), (29, 31)),
    ((30, 30), (31, 29)),
    ((30, 30), (15, 29)),
    ((64, 64), (64, 30)),
    ((64, 64), (30, 64)),
    ((133, 83), (1, 37)),
    ((137, 17), (126, 1)),
    ((720, 1280), (224, 224)),
    ((480, 640), (512, 683)),
    ((513, 511), (512, 512)),
    ((2, 2), (300, 1)),
    ((100, 300), (364, 1092)),
]
# float32 sums: grey levels, and the share of pixels that may differ at all.
FAST_LEVELS, FAST_SHARE = 2, 0.01


def pillow(image, size_hw, name):
    resized = Image.fromarray(image).resize((size_hw[1], size_hw[0]), FILTERS[name])
    return np.asarray(resized)


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "noise"])
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_equals_pillow_bit_for_bit(picture, size_in, size_out, name, smooth):
    image = picture(*size_in, smooth=smooth)
    np.testing.assert_array_equal(resize(image, size_out, name), pillow(image, size_out, name))


@pytest.mark.parametrize("name", FILTERS)
def test_equals_pillow_at_random_sizes(name):
    rng = np.random.default_rng(7)
    for _ in range(60):
        sizes = np.exp(rng.uniform(0, 5.5, 4)).astype(int).tolist()
        image = rng.integers(0, 256, (*sizes[:2], 3), dtype=np.uint8)
        expected = pillow(image, sizes[2:], name)
        np.testing.assert_array_equal(resize(image, (sizes[2], sizes[3]), name), expected)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("size_in", "size_out"), [((720, 1280), (256, 455)), ((40, 30), (90, 80))])
def test_window_is_a_part_of_the_whole(picture, size_in, size_out, name):
    image = picture(*size_in)
    part = resize(image, size_out, name, window=(9, 21, 64, 50))
    np.testing.assert_array_equal(part, resize(image, size_out, name)[9:73, 21:71])


@pytest.mark.parametrize("name", FILTERS)
def test_fast_is_within_its_tolerance(picture, name):
    image = picture(720, 1280, smooth=False)
    exact = resize(image, (224, 224), name).astype(int)
    difference = np.abs(resize(image, (224, 224), name, fast=True) - exact)
    assert difference.max() <= FAST_LEVELS
    assert (difference > 0).mean() <= FAST_SHARE


def test_takes_views_and_leaves_its_input_alone(picture):
    image = picture(60, 80)
    view = image[::-1, ::2]
    before = image.copy()
    expected = pillow(np.ascontiguousarray(view), (30, 30), "bicubic")
    np.testing.assert_array_equal(resize(view, (30, 30), "bicubic"), expected)
    same = resize(image, (60, 80), "bicubic")
    same[:] = 0
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "size", "name"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2), "box"),
        (np.zeros((4, 4), np.uint8), (2, 2), "box"),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), "box"),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), "box"),
        (np.zeros((4, 4, 3), np.uint8), (2, 10**6), "box"),
        (np.zeros((4, 4, 3), np.uint8), (2, 2), "hamming"),
    ],
)
def test_refuses(image, size, name):
    with pytest.raises(InputError):
        resize(image, size, name)
