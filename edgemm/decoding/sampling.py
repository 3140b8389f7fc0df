"""Choosing the next token: the likeliest, or one drawn from a narrowed distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def narrowed(scores: NDArray[Any], temperature: float, top_k: int = 0, top_p: float = 1.0) -> NDArray[np.float32]:
    """Scores [V] divided by `temperature`, with all but the `top_k` and the nucleus `top_p` at -inf.

    As transformers' warpers in their order: temperature, top-k, top-p (Holtzman et al., arXiv 1904.09751).
    """
    values = scores.astype(np.float32) / np.float32(temperature)
    if 0 < top_k < len(values):
        kth = np.partition(values, -top_k)[-top_k]
        values = np.where(values < kth, -np.inf, values)
    if top_p < 1.0:
        order = np.argsort(values, kind="stable")
        left_out = np.cumsum(softmax(values[order])) <= 1.0 - top_p
        left_out[-1] = False
        values[order[left_out]] = -np.inf
    result: NDArray[np.float32] = values.astype(np.float32)
    return result


def softmax(values: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities [V] in fp32."""
    weights = np.exp(values - values.max())
    result: NDArray[np.float32] = weights / weights.sum()
    return result


def draw(scores: NDArray[np.float32], rng: np.random.Generator) -> int:
    """One token id by the probabilities of `scores` [V]; the same generator state gives the same token."""
    cumulative = np.cumsum(softmax(scores).astype(np.float64))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
