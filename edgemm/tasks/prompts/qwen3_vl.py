"""Qwen3-VL: as Qwen2-VL, but each chunk of a video stands alone behind its time in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgemm.bundle.spec import PatchesSpec
from edgemm.errors import BundleError, InputError
from edgemm.processing.chat import render
from edgemm.processing.mrope import Block
from edgemm.processing.patches import Chunks
from edgemm.tasks.prompts.base import Context, Message, Prompt, bare, parts_of
from edgemm.tasks.prompts.qwen_vl import assemble, block, patches_spec, seen, times_of

_START, _END = "<|vision_start|>", "<|vision_end|>"


def prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """Twin of transformers' `Qwen3VLProcessor` and of its `get_rope_index`."""
    spec = patches_spec(context)
    images, videos = seen(messages, spec)
    text = render(bare(messages), context.chat)
    parts = parts_of(messages, "video")
    blocks = {context.tokens.image: [block(chunks, spec) for chunks in images]}
    if context.tokens.video is not None:
        pad = context.tokenizer.token_of(context.tokens.video)
        if pad is None:
            raise BundleError("the tokenizer lacks its video token", hint="export it again")
        text = _name_times(text, pad, [_stamps(part, spec) for part in parts])
        blocks[context.tokens.video] = [one for chunks in videos for one in _each(chunks, spec)]
    return assemble(context.encode(text), (images, videos), {k: v for k, v in blocks.items() if k is not None}, context)


def _each(chunks: Chunks, spec: PatchesSpec) -> list[Block]:
    whole = block(chunks, spec)
    return [Block(1, whole.rows, whole.columns)] * whole.times


def _stamps(part: Mapping[str, Any], spec: PatchesSpec) -> list[float]:
    """The middle of each chunk in seconds: between its first and its last frame."""
    times, step = times_of(part), spec.temporal_patch
    times += times[-1:] * (-len(times) % step)
    return [(times[i] + times[i + step - 1]) / 2 for i in range(0, len(times), step)]


def _name_times(text: str, pad: str, stamps: Sequence[Sequence[float]]) -> str:
    """Each video's placeholder, with the marks around it, becomes its chunks', each behind its time.

    Newer versions of transformers leave the outer marks standing; the models were trained without them.
    """
    found = re.split(f"(?:{re.escape(_START)})?{re.escape(pad)}(?:{re.escape(_END)})?", text)
    if len(found) - 1 != len(stamps):
        raise InputError(
            f"the prompt has {len(found) - 1} placeholders for {len(stamps)} videos",
            hint="give one video part for every one, and no placeholder in the text",
        )
    clips = ["".join(f"<{t:.1f} seconds>{_START}{pad}{_END}" for t in times) for times in stamps]
    return found[0] + "".join(clip + rest for clip, rest in zip(clips, found[1:], strict=True))
