"""Idefics3 and SmolVLM: every picture is cut into tiles, which the prompt names by row and column."""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.bundle.spec import TilesSpec
from edgemm.errors import BundleError
from edgemm.processing.chat import render
from edgemm.processing.image import preprocess_many
from edgemm.processing.tiles import expand_images
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, bare, parts_of


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `SmolVLMProcessor` and `Idefics3Processor`."""
    spec, token = context.processing.image, context.tokens.image
    if not isinstance(spec, TilesSpec) or token is None:
        raise BundleError("the model lacks its tiles or its image token", hint="export it again")
    images = [part["image"] for part in parts_of(messages, "image")]
    text = render(bare(messages), context.chat)
    if not images:
        return Prompt(context.encode(text))
    seen = preprocess_many(images, spec)
    text = expand_images(text, seen.rows, seen.cols, spec.image_seq_len, context.chat)
    feeds = {"pixel_values": seen.pixel_values}
    return Prompt(context.encode(text), (Media("vision_encoder", feeds, token),))
