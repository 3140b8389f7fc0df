"""Masks that are not causal: what a decoder's `attention_bias` inputs hold, before and after the prompt.

A bias is added to the scores of attention: 0 where a position is seen, the least number of fp16 where it is not.
`attention_bias` is for layers that see everything before them, `attention_bias.sliding` for those with a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import MaskSpec
from edgemm.decoding.language import Follow, Inputs

FULL, SLIDING = "attention_bias", "attention_bias.sliding"
UNSEEN = float(np.finfo(np.float16).min)

Seen = NDArray[np.bool_]


def of_prompt(ids: Sequence[int], image: int | None, spec: MaskSpec) -> dict[str, NDArray[np.float32]]:
    """The biases [1, 1, S, S] of a whole prompt; `image` is the id of a picture's tokens."""
    total = len(ids)
    causal = np.tri(total, dtype=np.bool_)
    together = _same_picture(ids, image) if spec.kind == "image_blocks" else np.ones((total, total), np.bool_)
    biases = {FULL: _bias(causal | together)}
    if spec.window is not None:
        near = ~np.tri(total, k=-spec.window, dtype=np.bool_)
        seen = near & (causal | together) if spec.blocks_in_window else (near & causal) | together
        biases[SLIDING] = _bias(seen)
    return biases


def _same_picture(ids: Sequence[int], image: int | None) -> Seen:
    """[S, S]: whether two positions lie in one run of picture tokens."""
    is_image = np.asarray(ids) == (-1 if image is None else image)
    starts = is_image & ~np.concatenate([[False], is_image[:-1]])
    run = np.where(is_image, np.cumsum(starts), 0)
    same: Seen = (run[:, None] == run[None]) & is_image
    return same


def _bias(seen: Seen) -> NDArray[np.float32]:
    return np.where(seen, 0.0, UNSEEN).astype(np.float32)[None, None]


def after_prompt(spec: MaskSpec, first: int = 0) -> Follow:
    """What a single position after the prompt takes: it sees all before it, within the window where there is one.

    `first` is the number of the first position of all.
    """

    def follow(past: int, batch: int) -> Inputs:
        shape = (batch, 1, 1, past + 1)
        extras = {FULL: np.zeros(shape, np.float32)}
        if spec.window is not None:
            extras[SLIDING] = np.zeros(shape, np.float32)
            extras[SLIDING][..., : max(0, past + 1 - spec.window)] = UNSEEN
        positions = np.full((batch, 1), past + first, np.int64) if first else None
        return Inputs(positions, extras)

    return follow
