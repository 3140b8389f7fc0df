"""Idefics3, LLaVA, Gemma 3, PaliGemma, LLaVA-OneVision: the bundle against transformers' processors and `generate`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    Idefics3ForConditionalGeneration,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from edgemm.errors import InputError
from edgemm.export.verify import compare
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import bare, user
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 64
TOLERANCE, COSINE, MARGIN = 1e-4, 0.99999, 1e-3
# Height and width: the tile itself, one pixel, odd edges, long strips, larger than every grid.
SIZES = [(32, 32), (1, 1), (31, 33), (7, 300), (300, 7), (96, 128), (481, 640)]
QUESTIONS = ["What is in the picture?", "turn left — größe, naïve café?", "x"]
SEVERAL = [(40, 61), (33, 90)]

_LLAVA = {"image_token": "<image>"}
# Model, image processor, processor, and how it is made.
FAMILIES = {
    "idefics3": (Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor, {"image_seq_len": 25}),
    "llava": (
        LlavaForConditionalGeneration, CLIPImageProcessorPil, LlavaProcessor,
        {**_LLAVA, "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_siglip": (
        LlavaForConditionalGeneration, SiglipImageProcessorPil, LlavaProcessor,
        {**_LLAVA, "patch_size": 8, "vision_feature_select_strategy": "full"},
    ),
    "gemma3": (Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil, Gemma3Processor, {"image_seq_length": 16}),
    "paligemma": (PaliGemmaForConditionalGeneration, SiglipImageProcessorPil, PaliGemmaProcessor, {}),
    "paligemma2": (PaliGemmaForConditionalGeneration, SiglipImageProcessorPil, PaliGemmaProcessor, {}),
    "llava_onevision": (
        LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor,
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_2"},
    ),
}  # fmt: skip
CHATS = [name for name in FAMILIES if not name.startswith("paligemma")]


class NoVideo:
    """Stands where the video processor would, which needs torchvision."""


class Original:
    """transformers' model and processor of a tiny checkpoint."""

    def __init__(self, name):
        self.name, path = name, checkpoint(name)
        cls, images, processor, made = FAMILIES[name]
        self.model = cls.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer, pixels = AutoTokenizer.from_pretrained(path), images.from_pretrained(path)
        parts = [pixels, tokenizer] + [NoVideo()] * (name == "llava_onevision")
        if name in CHATS:
            made = {**made, "chat_template": (path / "chat_template.jinja").read_text()}
        else:
            pixels.image_seq_length = 16
        self.processor = processor(*parts, **made)
        self.context = None

    def inputs(self, images, question):
        """What the processor makes of one question, as `apply_chat_template` would tokenize it."""
        pictures = [[Image.fromarray(i) for i in images]] if images else None
        if self.name not in CHATS:
            text = "<image>" * len(images) + question
            with warnings.catch_warnings():  # transformers 5.23 makes a list of tensors an array
                warnings.simplefilter("ignore", DeprecationWarning)
                made = self.processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=False)
            return {k: v for k, v in made.items() if k != "labels"}
        text = self.processor.apply_chat_template(bare([user(question, images)]), add_generation_prompt=True)
        first = self.processor.tokenizer.bos_token
        special = first is None or not text.startswith(first)
        return dict(self.processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=special))

    def tokens(self, images, question):
        inputs = self.inputs(images, question)
        with torch.no_grad():
            said = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0]
        new = said[inputs["input_ids"].shape[1] :].tolist()
        eos = self.model.generation_config.eos_token_id
        return tuple(new[: new.index(eos)] if eos in new else new)

    def logits(self, images, question, forced=()):
        """[1 + forced, V]: of what follows the prompt, and of what follows each forced token."""
        inputs = self.inputs(images, question)
        more, start = torch.tensor([list(forced)], dtype=torch.long), inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "token_type_ids" in inputs:
            # 1 is a picture's token to Gemma 3, and one after the prompt to PaliGemma.
            fill = int(self.name not in CHATS)
            inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.full_like(more, fill)], dim=1)
        with torch.no_grad():
            return self.model(**inputs).logits[0, start - 1 :].numpy()


@pytest.fixture(scope="module")
def originals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        yield {name: Original(name) for name in FAMILIES}


@pytest.fixture(scope="module")
def bundles():
    open_models = {(name, runtime): model(name, runtime) for name in FAMILIES for runtime in RUNTIMES}
    yield open_models
    for one in open_models.values():
        one.close()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_vlm_tokens_equal_generate(originals, bundles, name, size):
    image, question = picture(*size), QUESTIONS[SIZES.index(size) % len(QUESTIONS)]
    expected = originals[name].tokens([image], question)
    for runtime in RUNTIMES:
        found = bundles[name, runtime].answer(image, question, max_new_tokens=STEPS)
        assert found.tokens == expected, runtime
    assert len(set(expected)) >= 8, "the text is a loop: it could hide a wrong cache"


@pytest.mark.parametrize("sizes", [SEVERAL, []], ids=["several", "none"])
@pytest.mark.parametrize("name", FAMILIES)
def test_several_pictures_or_none_equal_generate(originals, bundles, name, sizes):
    if not sizes and name not in CHATS:
        with pytest.raises(InputError, match="expected one question about a picture"):
            bundles[name, "onnxruntime"].answer([], QUESTIONS[0])
        return
    images = [picture(*size) for size in sizes]
    expected = originals[name].tokens(images, QUESTIONS[0])
    for runtime in RUNTIMES:
        assert bundles[name, runtime].answer(images, QUESTIONS[0], max_new_tokens=STEPS).tokens == expected, runtime


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_vlm_prompts_and_pixels_equal_the_processors(originals, bundles, name, question):
    context = bundles[name, "onnxruntime"].task("answer").context
    for sizes in ([(45, 70)], SEVERAL):
        images = [picture(*size) for size in sizes]
        expected = originals[name].inputs(images, question)
        made = make_prompt([user(question, images)], context)
        assert made.ids == expected["input_ids"][0].tolist()
        pixels = np.concatenate([m.feeds["pixel_values"] for m in made.media])
        wanted = expected["pixel_values"].numpy().reshape(-1, *pixels.shape[1:])
        np.testing.assert_allclose(pixels, wanted, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_forced_tokens_have_the_originals_logits(originals, bundles, name, runtime):
    image = picture(64, 80, seed=1)
    original = originals[name]
    forced = np.random.default_rng(5).integers(260, 290, STEPS).tolist()
    expected = original.logits([image], QUESTIONS[0], forced)
    answerer = bundles[name, runtime].task("answer")
    language, logits = answerer.prefill([user(QUESTIONS[0], [image])])
    found = [logits, *(language.step([token])[0] for token in forced)]
    for a, b in zip(expected, found, strict=True):
        worst, cosine = compare({"logits": a}, {"logits": b})
        assert worst <= TOLERANCE
        assert cosine >= COSINE
        second, first = np.sort(a)[-2:]
        assert first - second <= MARGIN or a.argmax() == b.argmax()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_another_picture_moves_the_logits(bundles, name, runtime):
    answerer = bundles[name, runtime].task("answer")
    found = [answerer.logits([picture(64, 80, seed=seed)], QUESTIONS[0]) for seed in (1, 2)]
    assert np.abs(found[0] - found[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_a_placeholder_in_the_words_is_refused(bundles, name):
    token = "<start_of_image>" if name == "gemma3" else "<image>"
    with pytest.raises(InputError):
        bundles[name, "onnxruntime"].answer(picture(9, 9), f"What is {token} here?")


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_a_conversation_is_refused_where_there_is_none(bundles, name):
    turns = [user("What?", [picture(9, 9)]), {"role": "assistant", "content": "A cat."}, user("And now?")]
    with pytest.raises(InputError, match="expected one question"):
        bundles[name, "onnxruntime"].task("answer").chat(turns)
