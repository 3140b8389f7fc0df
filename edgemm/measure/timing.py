"""Medians and tails of repeated calls, interleaved so that a busy minute favours nobody."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_RESAMPLES = 2000


@dataclass(frozen=True)
class Times:
    """Milliseconds over `rounds` calls. With under 100 of them, p99 is the slowest one."""

    median_ms: float
    p99_ms: float
    rounds: int


def quantile(values: list[float], share: float) -> float:
    """The value at `share` (0…1) of the sorted values, nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Call each once to warm it up, then all of them in turn, `rounds` times."""
    return {key: times_of(taken) for key, taken in taken_ms(calls, rounds).items()}


def taken_ms(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The milliseconds of every call of `interleaved`, in its order."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            taken[key].append((time.perf_counter() - start) * 1e3)
    return taken


def times_of(taken: list[float]) -> Times:
    """Median and tail of the milliseconds of some calls."""
    return Times(round(quantile(taken, 0.5), 4), round(quantile(taken, 0.99), 4), len(taken))


def least_ratio(slow: list[float], fast: list[float]) -> float:
    """The lower end of the 95 % interval of median(slow) / median(fast): bootstrap over the rounds that both share.

    A round's two times are drawn together, so what slowed both of them does not widen the interval.
    """
    import numpy as np

    both = np.array([slow, fast])
    picks = np.random.default_rng(0).integers(0, both.shape[1], (_RESAMPLES, both.shape[1]))
    medians = np.median(both[:, picks], axis=-1)
    return round(float(np.quantile(medians[0] / np.maximum(medians[1], 1e-9), 0.025)), 3)
