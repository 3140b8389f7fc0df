"""Idefics3 and SmolVLM: every picture is cut into tiles, which the prompt names by row and column."""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.bundle.spec import TilesSpec
from edgemm.errors import BundleError
from edgemm.processing.chat import render
from edgemm.processing.image import preprocess
from edgemm.processing.tiles import expand_images
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, bare, parts_of

# All 17 tiles of a large picture of 512 px tiles at once hold 0.9 GiB of attention scores; four hold 0.2 GiB.
TILES_AT_ONCE = 4


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `SmolVLMProcessor` and `Idefics3Processor`."""
    spec, token = context.processing.image, context.tokens.image
    if not isinstance(spec, TilesSpec) or token is None:
        raise BundleError("the model lacks its tiles or its image token", hint="export it again")
    images = [part["image"] for part in parts_of(messages, "image")]
    text = render(bare(messages), context.chat)
    seen = [preprocess(image, spec) for image in images]
    rows, cols = [n for one in seen for n in one.rows], [n for one in seen for n in one.cols]
    text = expand_images(text, rows, cols, spec.image_seq_len, context.chat)
    media = tuple(
        Media("vision_encoder", {"pixel_values": one.pixel_values}, token, at_once=TILES_AT_ONCE) for one in seen
    )
    return Prompt(context.encode(text), media)
