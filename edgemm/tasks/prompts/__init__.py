"""Messages → what a chat model reads: one file a prompt style, found by the name that the manifest gives.

A style is a function `prompt(messages, context) -> Prompt`. It renders the checkpoint's chat template, expands the
placeholders of pictures, videos and sounds, prepares the encoders' inputs, and says where positions or masks are
not the plain ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import cast

from edgemm.errors import BundleError
from edgemm.tasks.prompts.base import Context, Message, Prompt

Style = Callable[[Sequence[Message], Context], Prompt]

STYLES = ("qwen3_vl", "qwen_audio", "qwen_vl", "tiles", "repeat", "paligemma", "anyres")
DEFAULT = "tiles"


def style(name: str) -> Style:
    """The prompt style called `name`; BundleError for an unknown one."""
    if name not in STYLES:
        raise BundleError(
            f"the bundle wants the prompt style {name!r}, this edgemm knows {', '.join(STYLES)}",
            hint="run: pip install -U edgemm",
        )
    return cast(Style, importlib.import_module(f"{__name__}.{name}").prompt)


def make_prompt(messages: Sequence[Message], context: Context) -> Prompt:
    """The prompt of `messages` in the style that the model's manifest names."""
    return style(context.processing.functions.get("prompt", DEFAULT))(messages, context)
