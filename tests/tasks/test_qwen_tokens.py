"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen2-Audio: the bundle against transformers' processors and `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

from edgemm.decoding.options import Generation
from edgemm.errors import InputError
from edgemm.export.verify import compare
from edgemm.processing.patches import video_chunks
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import bare, user
from tests.export.exported import RUNTIMES, checkpoint, model, picture

STEPS = 64
TOLERANCE, COSINE, MARGIN = 1e-4, 0.99999, 1e-3
# Height and width: one token, odd edges, strips of the allowed aspect, smaller and larger than the limits.
SIZES = [(32, 32), (1, 1), (31, 33), (7, 300), (300, 7), (96, 128), (481, 640)]
QUESTIONS = ["What is in the picture?", "turn left — größe, naïve café?", "x"]
SEVERAL = [(40, 61), (33, 90)]
RATE_HZ = 16_000
SOUNDS_S = [1.0, 0.3, 3.33, 7.9]

FAMILIES = {
    "qwen2_vl": (Qwen2VLForConditionalGeneration, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLProcessor),
    "qwen2_audio": (Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor),
}
SEES = [name for name in FAMILIES if name != "qwen2_audio"]


class NoVideo:
    """Stands where the video processor would, which needs torchvision."""

    merge_size = temporal_patch_size = 2


def sound(seconds, seed=0):
    """A voice-like chirp: float32 [samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tone = np.sin(2 * np.pi * (150 + 80 * seed) * t * (1 + 0.3 * np.sin(3 * t)))
    return (0.4 * tone + 0.05 * rng.standard_normal(len(t))).astype(np.float32)


class Original:
    """transformers' model and processor of a tiny checkpoint."""

    def __init__(self, name):
        self.name, path = name, checkpoint(name)
        cls, processor = FAMILIES[name]
        self.model = cls.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer, template = AutoTokenizer.from_pretrained(path), (path / "chat_template.jinja").read_text()
        if name in SEES:
            parts = (Qwen2VLImageProcessorPil.from_pretrained(path), tokenizer, NoVideo())
        else:
            parts = (WhisperFeatureExtractor.from_pretrained(path), tokenizer)
        self.processor = processor(*parts, chat_template=template)

    def inputs(self, media, question):
        """What the processor makes of one question about `media`: pictures, or sounds."""
        messages = bare([user(question, media)] if self.name in SEES else [user(question, (), m) for m in media])
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        if self.name in SEES:
            pictures = [Image.fromarray(i) for i in media] or None
            return dict(self.processor(text=[text], images=pictures, return_tensors="pt"))
        return dict(self.processor(text=[text], audio=list(media), sampling_rate=RATE_HZ, return_tensors="pt"))

    def generate(self, inputs):
        with torch.no_grad():
            said = self.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0]
        new = said[inputs["input_ids"].shape[1] :].tolist()
        ends = [i for i, token in enumerate(new) if token in self.model.generation_config.eos_token_id]
        return tuple(new[: ends[0]] if ends else new)

    def tokens(self, media, question):
        return self.generate(self.inputs(media, question))

    def logits(self, media, question, forced):
        """[1 + forced, V]: of what follows the prompt, and of what follows each forced token."""
        inputs = self.inputs(media, question)
        more, start = torch.tensor([list(forced)]), inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
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


def messages_of(name, media, question):
    return [user(question, media)] if name in SEES else [user(question, (), m) for m in media]


def assert_no_loop(tokens):
    assert len(set(tokens)) >= 8, "the text is a loop: it could hide a wrong cache"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SEES)
def test_qwen_tokens_equal_generate(originals, bundles, name, size):
    image, question = picture(*size), QUESTIONS[SIZES.index(size) % len(QUESTIONS)]
    expected = originals[name].tokens([image], question)
    for runtime in RUNTIMES:
        assert bundles[name, runtime].answer(image, question, max_new_tokens=STEPS).tokens == expected, runtime
    assert_no_loop(expected)


@pytest.mark.parametrize("seconds", SOUNDS_S)
def test_qwen_audio_tokens_equal_generate(originals, bundles, seconds):
    question = QUESTIONS[SOUNDS_S.index(seconds) % len(QUESTIONS)]
    expected = originals["qwen2_audio"].tokens([sound(seconds)], question)
    for runtime in RUNTIMES:
        found = bundles["qwen2_audio", runtime].answer([], question, audio=sound(seconds), max_new_tokens=STEPS)
        assert found.tokens == expected, runtime
    assert_no_loop(expected)


@pytest.mark.parametrize("sizes", [SEVERAL, []], ids=["several", "none"])
@pytest.mark.parametrize("name", SEES)
def test_several_pictures_or_none(originals, bundles, name, sizes):
    images = [picture(*size) for size in sizes]
    expected = originals[name].tokens(images, QUESTIONS[0])
    for runtime in RUNTIMES:
        assert bundles[name, runtime].answer(images, QUESTIONS[0], max_new_tokens=STEPS).tokens == expected, runtime


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_media_equal_the_processors(originals, bundles, name, question):
    context = bundles[name, "onnxruntime"].task("answer").context
    groups = ([(45, 70)], SEVERAL) if name in SEES else ([1.0], [0.7])
    for group in groups:
        media = [picture(*size) for size in group] if name in SEES else [sound(s) for s in group]
        expected = originals[name].inputs(media, question)
        made = make_prompt(messages_of(name, media, question), context)
        assert made.ids == expected["input_ids"][0].tolist()
        key = "pixel_values" if name in SEES else "input_features"
        values = np.concatenate([m.feeds[key] for m in made.media])
        np.testing.assert_allclose(values, expected[key].numpy(), atol=1e-6 if name in SEES else 1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", SEES)
def test_a_video_equals_generate(originals, bundles, name, frames):
    """Positions, windows and times of videos. The pixels are our own: the original's processor needs torchvision."""
    clip = np.stack([picture(40, 61, seed=i) for i in range(frames)])
    times = [0.5 * i for i in range(frames)]
    content = [{"type": "video", "video": clip, "times_s": times}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}]
    answerer = bundles[name, "onnxruntime"].task("answer")
    made, spec = make_prompt(messages, answerer.context), answerer.context.processing.image
    chunks = video_chunks(clip, spec)
    ids = torch.tensor([made.ids])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == answerer.context.tokens.video).int(),
        "pixel_values_videos": torch.from_numpy(np.concatenate(chunks.pixel_values)),
        "video_grid_thw": torch.tensor([[len(chunks.pixel_values), chunks.rows, chunks.columns]]),
    }
    if name == "qwen2_5_vl":
        between = times[1] - times[0] if frames > 1 else 1 / spec.tokens_per_s / spec.temporal_patch
        inputs["second_per_grid_ts"] = torch.tensor([spec.temporal_patch * between])
    expected = originals[name].generate(inputs)
    for runtime in RUNTIMES:
        found = bundles[name, runtime].task("answer").chat(messages, generation=Generation(max_new_tokens=STEPS))
        assert found.tokens == expected, runtime


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_forced_tokens_of_qwen_have_the_originals_logits(originals, bundles, name, runtime):
    media = [picture(64, 80, seed=1)] if name in SEES else [sound(2.0)]
    forced = np.random.default_rng(5).integers(20, 290, STEPS).tolist()
    expected = originals[name].logits(media, QUESTIONS[0], forced)
    language, logits = bundles[name, runtime].task("answer").prefill(messages_of(name, media, QUESTIONS[0]))
    found = [logits, *(language.step([token])[0] for token in forced)]
    for a, b in zip(expected, found, strict=True):
        worst, cosine = compare({"logits": a}, {"logits": b})
        assert worst <= TOLERANCE
        assert cosine >= COSINE
        second, first = np.sort(a)[-2:]
        assert first - second <= MARGIN or a.argmax() == b.argmax()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", FAMILIES)
def test_other_media_move_the_logits(bundles, name, runtime):
    answerer = bundles[name, runtime].task("answer")
    found = []
    for seed in (1, 2):
        media = [picture(64, 80, seed=seed)] if name in SEES else [sound(2.0, seed)]
        found.append(answerer.prefill(messages_of(name, media, QUESTIONS[0]))[1])
    assert np.abs(found[0] - found[1]).max() > 100 * TOLERANCE


def test_what_a_model_does_not_take_is_refused(bundles):
    hears, sees = bundles["qwen2_audio", "onnxruntime"], bundles["qwen2_vl", "onnxruntime"]
    with pytest.raises(InputError, match="hears and does not see"):
        hears.answer(picture(9, 9), "What?")
    with pytest.raises(InputError, match="sees and does not hear"):
        sees.answer([], "What?", audio=sound(1.0))
    with pytest.raises(InputError, match=r"lasts 9\.0 s: expected at most 8 s"):
        hears.answer([], "What?", audio=sound(9.0))
    with pytest.raises(InputError, match="too short"):
        hears.answer([], "What?", audio=sound(0.01))
    with pytest.raises(InputError, match="too narrow"):
        sees.answer(picture(1, 300), "What?")
    with pytest.raises(InputError, match="placeholder"):
        sees.answer(picture(9, 9), "What is <|image_pad|> here?")
    with pytest.raises(InputError, match="placeholder"):
        hears.answer([], "What is <|AUDIO|> here?", audio=sound(1.0))


def test_a_video_needs_its_times(bundles):
    content = [{"type": "video", "video": np.zeros((3, 40, 40, 3), np.uint8), "times_s": [0.0, 1.0]}]
    with pytest.raises(InputError, match="3 frames has 2 times"):
        bundles["qwen3_vl", "onnxruntime"].task("answer").chat([{"role": "user", "content": content}])
