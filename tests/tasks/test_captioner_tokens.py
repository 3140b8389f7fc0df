"""Encoder–decoders that see: captions and answers of the bundle against transformers' processors and `generate`."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from edgemm.decoding.language import Language
from edgemm.errors import InputError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families.vision_encoder_decoder import load
from edgemm.runtimes.base import as_numpy
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 64
TOLERANCE = 1e-4
COSINE = 0.99999
MARGIN = 1e-3
MIN_DISTINCT = 8
SIZES = [(32, 32), (1, 1), (31, 33), (7, 300), (300, 7), (100, 61)]
CAPTIONERS = ["trocr", "trocr_small", "vit_gpt2"]


class Original:
    """transformers' model and image processor of a tiny checkpoint that captions."""

    def __init__(self, name):
        path = checkpoint(name)
        self.model = load(find_checkpoint(path))
        self.processor = ViTImageProcessorPil.from_pretrained(path)

    def pixels(self, image):
        return self.processor(Image.fromarray(image), return_tensors="pt").pixel_values

    def start(self):
        return [self.model.generation_config.decoder_start_token_id]

    def tokens(self, image):
        with torch.no_grad():
            ids = self.model.generate(
                pixel_values=self.pixels(image), max_new_tokens=STEPS, do_sample=False, num_beams=1
            )[0, 1:].tolist()
        eos = self.model.generation_config.eos_token_id
        return tuple(ids[: ids.index(eos)] if eos in ids else ids)

    def logits(self, image, ids):
        """[S, V] after each of `ids`."""
        with torch.no_grad():
            out = self.model(pixel_values=self.pixels(image), decoder_input_ids=torch.tensor([ids]))
        return out.logits[0].numpy()


@cache
def original(name):
    return Original(name)


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in CAPTIONERS}
    yield models
    for one in models.values():
        one.close()


def forced(captioner, image, text, ids):
    """Logits [steps + 1, V] of the bundle while `ids` are said whatever it would say."""
    language, logits = captioner.prefill(image, text)
    assert isinstance(language, Language)
    rows = [as_numpy(logits)]
    rows += [language.step([token])[0] for token in ids]
    return np.stack(rows)


def assert_same(found, expected):
    """Equal logits, and the same choice wherever the original is sure of it."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert cosine.min() >= COSINE
    best = np.sort(b, axis=-1)
    sure = best[:, -1] - best[:, -2] > MARGIN
    assert sure.any()
    np.testing.assert_array_equal(a.argmax(-1)[sure], b.argmax(-1)[sure])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_equal_generate(bundles, name, size):
    image = picture(*size)
    expected = original(name).tokens(image)
    found = bundles[name].caption(image, max_new_tokens=STEPS)
    assert found.tokens == expected
    assert found.text == bundles[name].task("caption").tokenizer.decode(expected).strip()
    if size != (1, 1):  # one colour, and little to say about it
        assert len(set(expected)) >= MIN_DISTINCT, "the text is a loop: it could hide a wrong cache"


@pytest.mark.parametrize("name", CAPTIONERS)
def test_forced_captions_have_the_same_logits(bundles, name):
    rng = np.random.default_rng(5)
    image, twin = picture(50, 40), original(name)
    ids = rng.integers(5, 250, STEPS).tolist()
    found = forced(bundles[name].task("caption"), image, "", ids)
    assert_same(found, twin.logits(image, [*twin.start(), *ids]))


@pytest.mark.parametrize("name", CAPTIONERS)
def test_another_picture_moves_the_logits(bundles, name):
    captioner = bundles[name].task("caption")
    logits = [captioner.prefill(picture(40, 60, seed))[1] for seed in (1, 2)]
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE


def test_two_pictures_are_refused(bundles):
    with pytest.raises(InputError, match="one picture, not 2"):
        bundles["trocr"].task("caption")([picture(9, 9)] * 2, "What?")
