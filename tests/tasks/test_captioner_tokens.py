"""Encoder–decoders that see: captions and answers of the bundle against transformers' processors and `generate`."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    Florence2ForConditionalGeneration,
    ViTImageProcessorPil,
)

from edgemm.decoding.options import Generation
from edgemm.errors import ContextFull, InputError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.families.vision_encoder_decoder import load
from edgemm.runtimes.base import as_numpy
from tests.export.exported import RUNTIMES, checkpoint, model, picture
from tests.florence import florence_processor

STEPS = 64
TOLERANCE = 1e-4
COSINE = 0.99999
MARGIN = 1e-3
MIN_DISTINCT = 8
SIZES = [(32, 32), (1, 1), (31, 33), (7, 300), (300, 7), (100, 61)]
QUESTIONS = ["What is in the picture?", "turn left — größe, naïve café?", "x"]
TASKS = ["<OD>", "<OCR_WITH_REGION>", "<CAPTION_TO_PHRASE_GROUNDING> a red car", "free words é"]


class Reader:
    """TrOCR and ViT–GPT2: a picture alone."""

    def __init__(self, name):
        path = checkpoint(name)
        self.model = load(find_checkpoint(path))
        self.processor = ViTImageProcessorPil.from_pretrained(path)
        self.start = self.model.generation_config.decoder_start_token_id
        self.eos = self.model.generation_config.eos_token_id

    def inputs(self, image, _):
        return {"pixel_values": self.processor(Image.fromarray(image), return_tensors="pt").pixel_values}

    def generate(self, inputs, **options):
        return self.model.generate(**inputs, **options)[0, 1:].tolist()

    def tokens(self, image, text=""):
        with torch.no_grad():
            ids = self.generate(self.inputs(image, text), max_new_tokens=STEPS, do_sample=False, num_beams=1)
        return tuple(ids[: ids.index(self.eos)] if self.eos in ids else ids)

    def logits(self, image, text, ids):
        """[S, V] after the start and after each of `ids`."""
        with torch.no_grad():
            said = torch.tensor([[self.start, *ids]])
            return self.model(**self.inputs(image, text), decoder_input_ids=said).logits[0].numpy()


class Blip(Reader):
    """BLIP for captions, which go on from words."""

    cls = BlipForConditionalGeneration

    def __init__(self, name):
        path = checkpoint(name)
        self.model = self.cls.from_pretrained(path).eval()
        self.processor = BlipImageProcessorPil.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.start = self.model.config.text_config.bos_token_id
        self.eos = self.model.config.text_config.sep_token_id

    def inputs(self, image, text):
        words = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False) if text else {}
        return {**super().inputs(image, text), **words}

    def generate(self, inputs, **options):
        before = max(1, inputs["input_ids"].shape[1] - 1) if "input_ids" in inputs else 1
        return self.model.generate(**inputs, **options)[0, before:].tolist()

    def logits(self, image, text, ids):
        with torch.no_grad():
            values = self.inputs(image, text)["pixel_values"]
            return self.model(pixel_values=values, input_ids=torch.tensor([[self.start, *ids]])).logits[0].numpy()


class BlipAsked(Blip):
    """BLIP for questions."""

    cls = BlipForQuestionAnswering

    def generate(self, inputs, **options):
        return self.model.generate(**inputs, **options)[0, 1:].tolist()

    def logits(self, image, text, ids):
        inputs = self.inputs(image, text)
        with torch.no_grad():
            seen = self.model.vision_model(inputs.pop("pixel_values"))[0]
            states = self.model.text_encoder(**inputs, encoder_hidden_states=seen)[0]
            said = torch.tensor([[self.start, *ids]])
            return self.model.text_decoder(said, encoder_hidden_states=states).logits[0].numpy()


class Florence(Reader):
    """Florence-2, its prompts made by its own processor."""

    def __init__(self, name):
        path = checkpoint(name)
        self.model = Florence2ForConditionalGeneration.from_pretrained(path).eval()
        with pytest.MonkeyPatch.context() as patch:
            self.processor = florence_processor(path, patch)
        self.start = self.model.generation_config.decoder_start_token_id
        self.eos = self.model.generation_config.eos_token_id

    def inputs(self, image, text):
        return self.processor(text=text or "<CAPTION>", images=Image.fromarray(image), return_tensors="pt")


KINDS = {
    "trocr": Reader,
    "trocr_small": Reader,
    "vit_gpt2": Reader,
    "blip": Blip,
    "blip_vqa": BlipAsked,
    "florence2": Florence,
}
CAPTIONERS = [name for name in KINDS if name != "blip_vqa"]


@cache
def original(name):
    return KINDS[name](name)


@pytest.fixture(scope="module", params=RUNTIMES)
def bundles(request):
    models = {name: model(name, request.param) for name in KINDS}
    yield models
    for one in models.values():
        one.close()


def task(bundles, name):
    return bundles[name].task(bundles[name].tasks[0])


def forced(captioner, image, text, ids):
    """Logits [1 + ids, V] of the bundle while `ids` are said whatever it would say."""
    language, logits = captioner.prefill(image, text)
    return np.stack([as_numpy(logits), *(language.step([token])[0] for token in ids)])


def assert_same(found, expected):
    """Equal logits, and the same choice wherever the original is sure of it."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert cosine.min() >= COSINE
    best = np.sort(b, axis=-1)
    sure = best[:, -1] - best[:, -2] > MARGIN
    assert sure.sum() > len(sure) // 2
    np.testing.assert_array_equal(a.argmax(-1)[sure], b.argmax(-1)[sure])


def assert_no_loop(tokens, size):
    if size != (1, 1):  # one colour, and little to say about it
        assert len(set(tokens)) >= MIN_DISTINCT, "the text is a loop: it could hide a wrong cache"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_equal_generate(bundles, name, size):
    image = picture(*size)
    expected = original(name).tokens(image)
    found = bundles[name].caption(image, max_new_tokens=STEPS, beams=1)
    assert found.tokens == expected
    assert_no_loop(expected, size)


@pytest.mark.parametrize("size", SIZES[2:], ids=str)
@pytest.mark.parametrize(
    ("name", "text"),
    [*(("blip_vqa", q) for q in QUESTIONS), *(("florence2", t) for t in TASKS)],
)
def test_answers_equal_generate(bundles, name, text, size):
    image = picture(*size)
    expected = original(name).tokens(image, text)
    assert bundles[name].answer(image, text, max_new_tokens=STEPS, beams=1).tokens == expected
    assert_no_loop(expected, size)


@pytest.mark.parametrize("prompt", ["a red car", "What?"])
def test_blip_goes_on_from_a_prompt(bundles, prompt):
    image = picture(40, 33)
    greedy = Generation(max_new_tokens=STEPS, beams=1)
    found = bundles["blip"].task("caption").caption(image, prompt=prompt, generation=greedy)
    assert found.tokens == original("blip").tokens(image, prompt)


@pytest.mark.parametrize("name", KINDS)
def test_forced_tokens_have_the_same_logits(bundles, name):
    ids = np.random.default_rng(5).integers(5, 190, STEPS).tolist()
    image, text = picture(50, 40), {"blip_vqa": QUESTIONS[0], "florence2": TASKS[0]}.get(name, "")
    found = forced(task(bundles, name), image, text, ids)
    assert_same(found, original(name).logits(image, text, ids))


@pytest.mark.parametrize("name", KINDS)
def test_another_picture_moves_the_logits(bundles, name):
    text = {"blip_vqa": QUESTIONS[0], "florence2": TASKS[0]}.get(name, "")
    logits = [task(bundles, name).prefill(picture(40, 60, seed), text)[1] for seed in (1, 2)]
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["blip_vqa", "florence2"])
def test_another_question_moves_the_logits(bundles, name):
    logits = [task(bundles, name).prefill(picture(40, 60), text)[1] for text in ("left", "right now")]
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", CAPTIONERS)
def test_text_is_the_tokens_text(bundles, name):
    found = bundles[name].caption(picture(50, 50), max_new_tokens=16)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
    if name == "florence2":
        said = tokenizer.decode(found.tokens).replace("<s>", "").replace("</s>", "")
    else:
        said = tokenizer.decode(found.tokens, skip_special_tokens=True)
    assert found.text == said.strip()
    assert 0 < found.confidence <= 1


def test_answers_stream(bundles):
    pieces = []
    said = bundles["blip_vqa"].answer(picture(50, 50), "What?", max_new_tokens=24, on_text=pieces.append)
    assert "".join(pieces).strip() == said.text
    assert 0 < said.ttft_ms <= said.model_ms


def test_places_are_those_of_the_original_processor(bundles):
    one, twin = bundles["florence2"], original("florence2").processor
    image = picture(70, 190)
    found = one.answer(image, "<REGION_PROPOSAL>", max_new_tokens=STEPS, beams=1)
    text = twin.tokenizer.decode(found.tokens)
    expected = twin.post_process_generation(text=text, task="<REGION_PROPOSAL>", image_size=(190, 70))
    assert [list(r.box_px) for r in found.regions] == expected["<REGION_PROPOSAL>"]["bboxes"]
    objects = one.detect(image, score_min=0.0).objects
    assert all(0 <= o.box_px[0] <= 190 and 0 <= o.box_px[1] <= 70 for o in objects)


@pytest.mark.parametrize("images", [[], [picture(9, 9)] * 2])
def test_one_picture_is_answered_about(bundles, images):
    with pytest.raises(InputError, match=f"one picture, not {len(images)}"):
        bundles["blip_vqa"].answer(images, "What?")


@pytest.mark.parametrize("name", ["blip_vqa", "florence2"])
def test_a_question_that_is_too_long_is_refused(bundles, name):
    with pytest.raises(ContextFull, match="positions, the model takes"):
        bundles[name].answer(picture(9, 9), "robots " * 200)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused_here_too(bundles, question):
    with pytest.raises(InputError, match="empty"):
        bundles["blip_vqa"].answer(picture(9, 9), question)
