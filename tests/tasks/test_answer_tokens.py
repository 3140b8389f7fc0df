"""SmolVLM: answers of the bundle against transformers' own processor and `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from edgemm.errors import BundleError, ContextFull, InputError
from tests.checkpoints import SMOLVLM_TEMPLATE
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 64
TOLERANCE = 1e-4
# Height and width: one tile, odd edges, long strips, several tiles, larger than the longest edge.
PICTURES = [
    [(32, 32)], [(1, 1)], [(31, 33)], [(100, 61)], [(7, 300)], [(300, 7)], [(96, 128)],
    [(481, 640)], [(32, 32), (100, 61)], [(33, 90), (64, 64), (90, 33)], [],
]  # fmt: skip
QUESTIONS = ["What is in the picture?", "turn left — größe, naïve café?\n", "x"]


class NoVideo:
    """Stands where the video processor would, which needs torchvision."""

    num_frames, fps = 1, 1


class Original:
    """transformers' SmolVLM of a tiny checkpoint."""

    def __init__(self, name, monkeypatch):
        monkeypatch.setattr(SmolVLMProcessor, "check_argument_for_proper_class", lambda *_: None)
        path = checkpoint(name)
        self.model = SmolVLMForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = SmolVLMProcessor(
            SmolVLMImageProcessorPil.from_pretrained(path),
            AutoTokenizer.from_pretrained(path),
            NoVideo(),
            image_seq_len=4,
            chat_template=SMOLVLM_TEMPLATE,
        )

    def inputs(self, images, question):
        parts = [{"type": "image"} for _ in images]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True)
        pictures = [[Image.fromarray(i) for i in images]] if images else None
        return self.processor(text=[text], images=pictures, return_tensors="pt")

    def tokens(self, images, question):
        inputs = self.inputs(images, question)
        with torch.no_grad():
            said = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0]
        new = said[inputs["input_ids"].shape[1] :].tolist()
        eos = self.model.generation_config.eos_token_id
        return tuple(new[: new.index(eos)] if eos in new else new)

    def logits(self, images, question):
        with torch.no_grad():
            return self.model(**self.inputs(images, question)).logits[0, -1].numpy()


@pytest.fixture(scope="module")
def originals():
    with pytest.MonkeyPatch.context() as patch:
        yield {name: Original(name, patch) for name in ("smolvlm", "smolvlm_tied")}


@pytest.fixture(scope="module")
def bundles():
    open_models = {
        (name, runtime): model(name, runtime) for name in ("smolvlm", "smolvlm_tied") for runtime in RUNTIMES
    }
    yield open_models
    for one in open_models.values():
        one.close()


@pytest.mark.parametrize("sizes", PICTURES, ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["smolvlm", "smolvlm_tied"])
def test_tokens_equal_generate(originals, bundles, name, runtime, sizes):
    images = [picture(*size) for size in sizes]
    question = QUESTIONS[len(sizes) % 2]
    expected = originals[name].tokens(images, question)
    found = bundles[name, runtime].answer(images, question, max_new_tokens=STEPS)
    assert found.tokens == expected
    assert len(set(expected)) >= 8, "the text is a loop: it could hide a wrong cache"


@pytest.mark.parametrize("question", QUESTIONS)
def test_prompts_equal_generate(originals, bundles, question):
    images = [picture(40, 70)]
    expected = originals["smolvlm"].tokens(images, question)
    said = bundles["smolvlm", "onnxruntime"].answer(images[0], question, max_new_tokens=STEPS)
    assert said.tokens == expected


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_logits_equal_and_move_with_the_picture(originals, bundles, runtime):
    first, second = picture(64, 80, seed=1), picture(64, 80, seed=2)
    answerer = bundles["smolvlm", runtime].task("answer")
    question = QUESTIONS[0]
    found = [answerer.logits([image], question) for image in (first, second)]
    for image, logits in zip((first, second), found, strict=True):
        np.testing.assert_allclose(logits, originals["smolvlm"].logits([image], question), atol=TOLERANCE)
    assert np.abs(found[0] - found[1]).max() > 100 * TOLERANCE


def test_text_streams_and_is_the_tokens_text(bundles):
    pieces = []
    one = bundles["smolvlm", "onnxruntime"]
    said = one.answer(picture(50, 50), "What?", max_new_tokens=24, on_text=pieces.append)
    assert "".join(pieces).strip() == said.text
    assert said.text == one.task("answer").tokenizer.decode(said.tokens).strip()
    assert 0 < said.ttft_ms <= said.model_ms
    assert 0 < said.confidence < 1


def test_caption_is_the_answer_to_its_prompt(bundles):
    from edgemm.tasks.answer import CAPTION_PROMPT

    one, image = bundles["smolvlm", "onnxruntime"], picture(50, 50)
    assert one.caption(image, max_new_tokens=8).tokens == one.answer(image, CAPTION_PROMPT, max_new_tokens=8).tokens


def test_an_interrupted_answer_leaves_no_trace(bundles):
    one, image = bundles["smolvlm", "onnxruntime"], picture(50, 50)
    before = one.answer(image, "What?", max_new_tokens=12).tokens

    def interrupt(_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        one.answer(image, "Stop?", max_new_tokens=12, on_text=interrupt)
    assert one.answer(image, "What?", max_new_tokens=12).tokens == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_too_many_pictures_are_refused_before_the_decoder(bundles, runtime):
    images = [picture(96, 128)] * 12
    with pytest.raises(ContextFull, match="tokens, the model takes 512"):
        bundles["smolvlm", runtime].answer(images, "What?")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(bundles, question):
    with pytest.raises(InputError, match="empty"):
        bundles["smolvlm", "onnxruntime"].answer(picture(9, 9), question)


def test_an_image_token_in_the_question_is_refused(bundles):
    with pytest.raises((InputError, BundleError), match="image"):
        bundles["smolvlm", "onnxruntime"].answer(picture(9, 9), "What is <image> here?")
