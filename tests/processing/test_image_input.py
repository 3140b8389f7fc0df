"""Pictures from files and arrays, and the plain resize-and-crop processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from edgemm.bundle.spec import ResizeCropSpec
from edgemm.errors import InputError, SourceError
from edgemm.processing.image import preprocess, preprocess_many, to_rgb

SIZES = [
    (1, 1), (2, 3), (3, 1000), (1000, 3), (7, 5), (63, 65), (100, 223), (223, 225), (224, 224),
    (225, 224), (256, 256), (257, 255), (300, 200), (200, 300), (333, 777), (480, 640), (640, 480),
    (500, 501), (719, 1279), (720, 1280), (1080, 400),
]  # fmt: skip
TOLERANCE = 1e-6
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("size", SIZES)
def test_stretch_equals_vit(picture, size):
    image = picture(*size)
    original = ViTImageProcessorPil(size={"height": 224, "width": 224})
    expected = original(Image.fromarray(image), return_tensors="np")["pixel_values"]
    spec = ResizeCropSpec(height_px=224, width_px=224, resample="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    made = preprocess(image, spec)
    np.testing.assert_allclose(made.pixel_values, expected, atol=TOLERANCE)
    assert made.pixel_values.dtype == np.float32
    assert made.rows == made.cols == (0,)
    assert made.pixel_mask.all()


@pytest.mark.parametrize("short", [224, 256])
@pytest.mark.parametrize("size", [s for s in SIZES if max(s) / min(s) < 20])
def test_resize_then_crop_equals_clip(picture, size, short):
    image = picture(*size)
    original = CLIPImageProcessorPil(size={"shortest_edge": short})
    expected = original(Image.fromarray(image), return_tensors="np")["pixel_values"]
    spec = ResizeCropSpec(
        height_px=224, width_px=224, fit="resize_then_crop", crop_fraction=224 / short,
        mean=CLIP_MEAN, std=CLIP_STD,
    )  # fmt: skip
    np.testing.assert_allclose(preprocess(image, spec).pixel_values, expected, atol=TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_crop_then_resize_cuts_the_centre(picture, size):
    image = picture(*size)
    spec = ResizeCropSpec(
        height_px=224, width_px=224, fit="crop_then_resize", crop_fraction=0.875,
        rescale_factor=1.0, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0),
    )  # fmt: skip
    side = max(1, int(0.875 * min(size)))
    top, left = (size[0] - side + 1) // 2, (size[1] - side + 1) // 2
    cut = Image.fromarray(image[top : top + side, left : left + side])
    resized = np.asarray(cut.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    expected = ((resized - 127) / 128).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(preprocess(image, spec).pixel_values, expected, atol=TOLERANCE)


def test_many_pictures_lie_one_after_another(picture):
    spec = ResizeCropSpec(height_px=32, width_px=48)
    images = [picture(40, 30), picture(9, 90)]
    many = preprocess_many(images, spec).pixel_values
    assert many.shape == (2, 3, 32, 48)
    for one, image in zip(many, images, strict=True):
        np.testing.assert_array_equal(one, preprocess(image, spec).pixel_values[0])
    with pytest.raises(InputError, match="no picture"):
        preprocess_many([], spec)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg"])
def test_reads_files_as_pillow_does(picture, tmp_path, suffix):
    path = tmp_path / f"größe.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(picture(40, 31)).save(path, **options)
    difference = np.abs(to_rgb(path).astype(int) - np.asarray(Image.open(path)))
    # Two JPEG decoders may round differently.
    assert difference.max() <= (4 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_honours_exif_orientation(picture, tmp_path, orientation):
    from PIL import ImageOps

    image = Image.fromarray(picture(48, 80))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    image.save(path, exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    made = to_rgb(str(path))
    assert made.shape == upright.shape
    assert np.abs(made.astype(int) - upright).max() <= 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA", "RGB"])
def test_takes_pil_images_of_every_mode(picture, mode):
    image = Image.fromarray(picture(20, 30)).convert(mode)
    np.testing.assert_array_equal(to_rgb(image), np.asarray(image.convert("RGB")))


def test_takes_grey_alpha_and_deep_arrays(picture):
    rgb = picture(20, 30)
    grey = rgb[:, :, 0]
    alpha = np.dstack([rgb, np.zeros((20, 30), np.uint8)])
    np.testing.assert_array_equal(to_rgb(grey), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(to_rgb(grey[:, :, None]), to_rgb(grey))
    np.testing.assert_array_equal(to_rgb(alpha), rgb)
    np.testing.assert_array_equal(to_rgb(rgb.astype(np.uint16) * 257), rgb)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(to_rgb(deep), to_rgb(grey))


def test_reads_a_16_bit_grey_file(picture, tmp_path):
    grey = picture(20, 30)[:, :, 0]
    path = tmp_path / "deep.png"
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(to_rgb(path), to_rgb(grey))


@pytest.mark.parametrize(
    "bad",
    [
        None, 7, [[1, 2], [3, 4]], b"\xff\xd8", np.zeros((4, 4, 3)), np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 4, 2), np.uint8), np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), bool), np.array(3, np.uint8),
    ],
    ids=lambda bad: f"{type(bad).__name__}{getattr(bad, 'shape', '')}",
)  # fmt: skip
def test_refuses_what_is_no_picture(bad):
    with pytest.raises(InputError):
        to_rgb(bad)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", b"", "empty"),
        ("text.jpg", b"hello, I am a text\n", "text file"),
        ("torn.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "not a picture"),
        ("noise.jpg", bytes(range(256)) * 9, "not a picture"),
    ],
)
def test_bad_files_are_named_as_such(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        to_rgb(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        to_rgb(tmp_path / "none.png")
    with pytest.raises(SourceError, match="directory"):
        to_rgb(tmp_path)
