"""The histogram is as exact as it says, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.live.ledger import Ledger
from edgemm.live.stats import Histogram, RunStats


@pytest.mark.parametrize("scale", [0.02, 5.0, 400.0, 90_000.0])
@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_quantiles_within_one_percent(scale, q):
    values = scale * np.random.default_rng(1).lognormal(0, 0.7, 20_000)
    histogram = Histogram()
    for value in values:
        histogram.add(float(value))
    exact = float(np.sort(values)[int(np.ceil(q * len(values))) - 1])
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.0101)


def test_extremes():
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.add(-3.0)
    assert histogram.quantile(0.99) == -3.0
    histogram.add(1e12)
    assert histogram.quantile(1.0) > 9.9e6  # beyond the last bucket: as much as it can say
    counters = len(histogram._counts)
    for _ in range(1000):
        histogram.add(7.0)
    assert len(histogram._counts) == counters
    assert histogram.quantile(0.5) == pytest.approx(7.0, rel=0.01)


def test_summary_adds_up_the_sources():
    ledgers = {"camera.0": Ledger(), "camera.1": Ledger()}
    for n, ledger in enumerate(ledgers.values(), 2):
        for _ in range(n):
            ledger.captured()
        ledger.processed()
        ledger.drop("paced")
    stats = RunStats()
    stats.result(0.25)
    stats.result(0.5)
    summary = stats.summary(2.0, 2.0, {n: x.counts() for n, x in ledgers.items()}, {"text": 4})
    assert (summary.captured, summary.processed, summary.in_flight) == (5, 2, 1)
    assert summary.dropped == {"paced": 2}
    assert summary.first_result_s == 0.25
    assert summary.fps == 1.0
    assert summary.sinks_dropped == {"text": 4}
    assert summary.rss_mb > 10
