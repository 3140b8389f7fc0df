"""Qwen2-VL and Qwen2.5-VL: one placeholder token a patch block, positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edgemm.bundle.spec import PatchesSpec
from edgemm.decoding.language import Follow, Inputs
from edgemm.errors import BundleError, InputError
from edgemm.processing.chat import render
from edgemm.processing.mrope import Block, mrope
from edgemm.processing.patches import Chunks, chunk_feeds, picture_chunks, video_chunks
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, bare, parts_of


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `Qwen2VLProcessor` and `Qwen2_5_VLProcessor`, and of their `get_rope_index`."""
    spec = patches_spec(context)
    images, videos = seen(messages, spec)
    blocks = {
        context.tokens.image: [block(chunks, spec) for chunks in images],
        context.tokens.video: [
            block(chunks, spec, _interval(part, spec))
            for chunks, part in zip(videos, parts_of(messages, "video"), strict=True)
        ],
    }
    ids = context.encode(render(bare(messages), context.chat))
    return assemble(ids, (images, videos), {k: v for k, v in blocks.items() if k is not None}, context)


def patches_spec(context: Context) -> PatchesSpec:
    """The picture's constants; BundleError where the bundle lacks them."""
    spec = context.processing.image
    if not isinstance(spec, PatchesSpec) or context.tokens.image is None:
        raise BundleError("the model lacks its patches or its image token", hint="export it again")
    return spec


def seen(messages: Sequence[Message], spec: PatchesSpec) -> tuple[list[Chunks], list[Chunks]]:
    """The pictures and the videos of all messages, in order."""
    return (
        [picture_chunks(part["image"], spec) for part in parts_of(messages, "image")],
        [video_chunks(part["video"], spec) for part in parts_of(messages, "video")],
    )


def block(chunks: Chunks, spec: PatchesSpec, interval: float = 1.0) -> Block:
    """The placeholders of one picture or video."""
    return Block(len(chunks.pixel_values), chunks.rows // spec.merge, chunks.columns // spec.merge, interval)


def times_of(part: Mapping[str, Any]) -> list[float]:
    """The times of a video's frames in seconds; InputError unless there is one a frame, in order."""
    times = [float(t) for t in part.get("times_s") or ()]
    if len(times) != len(part["video"]) or any(b < a for a, b in pairwise(times)):
        raise InputError(
            f"a video of {len(part['video'])} frames has {len(times)} times: expected one each, in order",
            hint='give {"type": "video", "video": frames, "times_s": times}',
        )
    return times


def _interval(part: Mapping[str, Any], spec: PatchesSpec) -> float:
    times = times_of(part)
    if spec.tokens_per_s is None or len(times) < 2:
        return 1.0
    return spec.tokens_per_s * spec.temporal_patch * (times[-1] - times[0]) / (len(times) - 1)


def expand(ids: Sequence[int], blocks: Mapping[int, Sequence[Block]]) -> list[int]:
    """The ids with each placeholder repeated as often as its block has tokens.

    Raises InputError where there are more or fewer placeholders than blocks.
    """
    for token, runs in blocks.items():
        if ids.count(token) != len(runs):
            raise InputError(
                f"the prompt has {ids.count(token)} placeholders for {len(runs)} pictures or videos",
                hint="give one image or video part for every one, and no placeholder in the text",
            )
    waiting = {token: iter(runs) for token, runs in blocks.items()}
    return [i for token in ids for i in ([token] * next(waiting[token]).tokens if token in waiting else [token])]


def assemble(
    ids: Sequence[int],
    media: tuple[Sequence[Chunks], Sequence[Chunks]],
    blocks: Mapping[int, Sequence[Block]],
    context: Context,
) -> Prompt:
    """The prompt of `ids` with one placeholder a block: expanded, with the encoder's calls and the positions."""
    spec, full = patches_spec(context), expand(ids, blocks)
    positions, delta = mrope(full, blocks)
    calls = [
        Media("vision_encoder", feeds, token)
        for token, group in zip((context.tokens.image, context.tokens.video), media, strict=True)
        for chunks in group
        for feeds in chunk_feeds(chunks, spec)
        if token is not None
    ]
    return Prompt(full, tuple(calls), Inputs(positions), _follow(delta))


def _follow(delta: int) -> Follow:
    def follow(past: int, batch: int) -> Inputs:
        return Inputs(np.full((3, batch, 1), past + delta, np.int64))

    return follow
