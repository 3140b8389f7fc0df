"""The interval of a ratio of medians: it covers the truth, and a busy machine does not widen what is paired."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.measure.timing import least_ratio


def _times(rng: np.random.Generator, ratio: float, rounds: int = 60) -> tuple[list[float], list[float]]:
    busy = rng.gamma(2.0, 1.0, rounds)  # slows both calls of a round
    slow = ratio * 2.0 * (1 + busy) * rng.normal(1, 0.05, rounds)
    fast = 2.0 * (1 + busy) * rng.normal(1, 0.05, rounds)
    return list(slow), list(fast)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 2.5])
def test_the_true_ratio_is_seldom_below_the_interval(ratio: float) -> None:
    rng = np.random.default_rng(1)
    lows = [least_ratio(*_times(rng, ratio)) for _ in range(100)]
    assert sum(low > ratio for low in lows) <= 9  # 2.5 are expected
    assert np.median(lows) > 0.8 * ratio, "an interval that says something"


def test_the_same_times_have_the_ratio_1() -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert least_ratio(times, times) == 1.0
