"""LLaVA, Gemma 3 and their kin: every picture stands in the prompt as a fixed number of equal tokens."""

from __future__ import annotations

from collections.abc import Sequence

from edgemm.bundle.spec import ResizeCropSpec
from edgemm.decoding.language import Inputs
from edgemm.errors import BundleError, InputError
from edgemm.processing.chat import render
from edgemm.processing.image import preprocess
from edgemm.tasks import masks
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, bare, parts_of


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `LlavaProcessor` and `Gemma3Processor`, with the mask that the manifest names."""
    spec, token = context.processing.image, context.tokens.image
    if not isinstance(spec, ResizeCropSpec) or spec.image_seq_len is None or token is None:
        raise BundleError("the model lacks its picture's size or its image token", hint="export it again")
    images = [part["image"] for part in parts_of(messages, "image")]
    text = render(bare(messages), context.chat)
    ids = context.encode(expand(text, [spec.image_seq_len] * len(images), context))
    seen = [preprocess(image, spec) for image in images]
    media = tuple(Media("vision_encoder", {"pixel_values": one.pixel_values}, token) for one in seen)
    mask = context.processing.mask
    if mask is None:
        return Prompt(ids, media)
    return Prompt(ids, media, Inputs(None, masks.of_prompt(ids, token, mask)), masks.after_prompt(mask))


def expand(text: str, counts: Sequence[int], context: Context) -> str:
    """Replace what the template writes for each picture, in order, by that many image tokens and what surrounds them.

    Raises InputError where the prompt has more or fewer places than there are pictures.
    """
    chat, image = context.chat, context.tokens.image
    token = chat.image_token if image is None else context.tokenizer.token_of(image)
    pieces = text.split(chat.image_token)
    if len(pieces) - 1 != len(counts) or token is None:
        raise InputError(
            f"the prompt has {len(pieces) - 1} {chat.image_token} for {len(counts)} pictures",
            hint="give one image part for every picture, and leave image tokens out of the words",
        )
    runs = [chat.image_before + token * n + chat.image_after for n in counts]
    return pieces[0] + "".join(run + piece for run, piece in zip(runs, pieces[1:], strict=True))
