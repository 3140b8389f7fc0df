"""Medians and tails of repeated calls, interleaved so that a busy minute favours nobody."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


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
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            taken[key].append((time.perf_counter() - start) * 1e3)
    return {key: Times(round(quantile(t, 0.5), 4), round(quantile(t, 0.99), 4), len(t)) for key, t in taken.items()}
