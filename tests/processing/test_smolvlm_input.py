"""Tiles, prompts and chat template against transformers' SmolVLM processor."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from edgemm.bundle.spec import ChatSpec, TilesSpec
from edgemm.errors import InputError
from edgemm.processing.chat import render, user_message
from edgemm.processing.image import preprocess, preprocess_many
from edgemm.processing.tiles import expand_images

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPECIALS = [
    "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>",
    *(f"<row_{r}_col_{c}>" for r in range(1, 9) for c in range(1, 9)),
]  # fmt: skip
SIZES = [
    (1, 1), (1, 2), (3, 1000), (1000, 3), (2, 63), (7, 5), (31, 33), (63, 65), (64, 64), (65, 64),
    (100, 101), (127, 128), (128, 128), (129, 255), (200, 61), (240, 320), (255, 256), (256, 256),
    (257, 256), (300, 900), (480, 640), (511, 300), (640, 480), (720, 1280),
]  # fmt: skip
# (longest edge, tile, split): several tiles, more than 4 in a row, the picture as it is.
SCHEMES = [(256, 64, True), (448, 64, True), (200, 64, True), (64, 64, True), (256, 64, False)]
TOLERANCE = 1e-6
HALF = (0.5, 0.5, 0.5)
CHAT = ChatSpec(template=TEMPLATE)


def make_spec(longest, tile, split, image_seq_len=5):
    return TilesSpec(
        longest_edge=longest, max_image_size=tile, do_image_splitting=split,
        image_seq_len=image_seq_len, mean=HALF, std=HALF,
    )  # fmt: skip


def make_original(longest, tile, split):
    return SmolVLMImageProcessorPil(
        size={"longest_edge": longest},
        max_image_size={"longest_edge": tile},
        do_image_splitting=split,
        return_row_col_info=True,
    )


class NoVideo:
    """Stands where the video processor would, which needs torchvision."""

    num_frames, fps = 1, 1


@pytest.fixture(scope="module")
def tokenizer():
    letters = {chr(i): i for i in range(1, 256)}
    base = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="\x01"))
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=base, pad_token="\x02")
    wrapped.add_special_tokens({"additional_special_tokens": SPECIALS})
    return wrapped


@pytest.fixture
def make_processor(tokenizer, monkeypatch):
    monkeypatch.setattr(SmolVLMProcessor, "check_argument_for_proper_class", lambda *_: None)

    def make(longest, tile, split, image_seq_len=5):
        return SmolVLMProcessor(
            make_original(longest, tile, split),
            tokenizer,
            NoVideo(),
            image_seq_len=image_seq_len,
            chat_template=TEMPLATE,
        )

    return make


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "noise"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_original(picture, size, scheme, smooth):
    image = picture(*size, smooth=smooth)
    expected = make_original(*scheme)([[Image.fromarray(image)]], return_tensors="np")
    made = preprocess(image, make_spec(*scheme))
    np.testing.assert_allclose(made.pixel_values, expected["pixel_values"][0], atol=TOLERANCE)
    np.testing.assert_array_equal(made.pixel_mask, expected["pixel_attention_mask"][0])
    assert made.pixel_mask.dtype == np.bool_
    rows, cols = np.ravel(expected["rows"]).tolist(), np.ravel(expected["cols"]).tolist()
    assert (list(made.rows), list(made.cols)) == (rows, cols)


def test_smolvlm_256m_constants(picture):
    scheme = (2048, 512, True)
    image = picture(720, 1280)
    expected = make_original(*scheme)([[Image.fromarray(image)]], return_tensors="np")
    made = preprocess(image, make_spec(*scheme))
    assert made.pixel_values.shape == (13, 3, 512, 512)
    assert (made.rows, made.cols) == ((3,), (4,))
    np.testing.assert_allclose(made.pixel_values, expected["pixel_values"][0], atol=TOLERANCE)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [[(48, 64)], [(30, 300)], [(300, 30), (64, 64)], [(9, 9), (200, 100), (100, 200)]])
def test_prompt_and_ids_equal_the_original(picture, make_processor, tokenizer, sizes, scheme):
    images = [picture(*size) for size in sizes]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Before "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Ok. É"}]},
        user_message("What now?", len(images) - 1),
    ]
    processor = make_processor(*scheme)
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [Image.fromarray(image) for image in images]
    expected = processor(text=[prompt], images=[pictures], return_tensors="np")

    assert render(messages, CHAT) == prompt
    made = preprocess_many(images, make_spec(*scheme))
    text = expand_images(render(messages, CHAT), made.rows, made.cols, 5, CHAT)
    assert tokenizer(text)["input_ids"] == expected["input_ids"][0].tolist()
    np.testing.assert_allclose(made.pixel_values, expected["pixel_values"][0], atol=TOLERANCE)
    assert text.count("<image>") == 5 * len(made.pixel_values)


@pytest.mark.parametrize(("prompt", "pictures"), [("no token", 1), ("<image><image>", 1), ("<image>", 0)])
def test_refuses_a_wrong_number_of_pictures(prompt, pictures):
    with pytest.raises(InputError, match="pictures"):
        expand_images(prompt, [0] * pictures, [0] * pictures, 5, CHAT)
