"""LLaVA-OneVision: one picture is cut into tiles by its resolution, several pictures are taken whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import AnyresSpec
from edgemm.errors import BundleError
from edgemm.processing.anyres import Cut, cut, pack, token_count, whole
from edgemm.processing.chat import render
from edgemm.processing.image import normalize, to_rgb
from edgemm.tasks.prompts.base import Arrays, Context, Media, Message, Prompt, bare, parts_of
from edgemm.tasks.prompts.repeat import expand

Size = tuple[int, int]


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `LlavaOnevisionProcessor`."""
    spec, token = context.processing.image, context.tokens.image
    if not isinstance(spec, AnyresSpec) or token is None:
        raise BundleError("the model lacks its tiles or its image token", hint="export it again")
    images = [to_rgb(part["image"]) for part in parts_of(messages, "image")]
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    cuts = [cut(image, spec) if len(images) == 1 else whole(image, spec) for image in images]
    counts = [token_count(size, c.rows, c.cols, spec) for size, c in zip(sizes, cuts, strict=True)]
    ids = context.encode(expand(render(bare(messages), context.chat), counts, context))
    media = tuple(
        Media("vision_encoder", {"pixel_values": normalize(c.tiles, spec)}, token, packer(c, size, spec))
        for size, c in zip(sizes, cuts, strict=True)
    )
    return Prompt(ids, media)


def packer(picture: Cut, size: Size, spec: AnyresSpec) -> Callable[[Arrays], NDArray[Any]]:
    """How the encoder's features of one picture become what stands for it; their last row is the newline."""

    def packed(outputs: Arrays) -> NDArray[Any]:
        rows = np.asarray(outputs["image_features"])
        features = rows[:-1].reshape(len(picture.tiles), spec.side**2, rows.shape[1])
        return pack(features, rows[-1], size, picture.rows, picture.cols, spec)

    return packed
