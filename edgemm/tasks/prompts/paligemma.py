"""PaliGemma: pictures, then one question, without a chat; positions count from 1, the prompt sees itself whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgemm.bundle.spec import MaskSpec, ResizeCropSpec
from edgemm.decoding.language import Inputs
from edgemm.errors import BundleError, InputError
from edgemm.processing.image import preprocess_many
from edgemm.tasks import masks
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, parts_of

_FIRST = 1


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `PaliGemmaProcessor`. Raises InputError for a conversation and for no picture."""
    spec, tokens, mask = context.processing.image, context.tokens, context.processing.mask
    if not isinstance(spec, ResizeCropSpec) or spec.image_seq_len is None or tokens.image is None or mask is None:
        raise BundleError("the model lacks its picture's size, its image token or its mask", hint="export it again")
    images = [part["image"] for part in parts_of(messages, "image")]
    if len(messages) != 1 or not images:
        raise InputError(
            f"{len(messages)} messages with {len(images)} pictures: expected one question about a picture",
            hint="this model holds no conversation",
        )
    ids = _ids(_words(messages[0]), spec.image_seq_len * len(images), context)
    media = Media("vision_encoder", {"pixel_values": preprocess_many(images, spec).pixel_values}, tokens.image)
    return Prompt(ids, (media,), _inputs(ids, tokens.image, mask), masks.after_prompt(mask, _FIRST))


def _words(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def _ids(words: str, count: int, context: Context) -> list[int]:
    tokens, tokenizer = context.tokens, context.tokenizer
    image = "" if tokens.image is None else tokenizer.token_of(tokens.image) or ""
    first = "" if tokens.bos is None else tokenizer.token_of(tokens.bos) or ""
    if image in words:
        raise InputError(f"the question holds {image}, which stands for pictures", hint="leave it out")
    return tokenizer.encode(f"{image * count}{first}{words}\n", specials=False)


def _inputs(ids: list[int], image: int, mask: MaskSpec) -> Inputs:
    positions = np.arange(_FIRST, len(ids) + _FIRST, dtype=np.int64)[None]
    return Inputs(positions, masks.of_prompt(ids, image, mask))
