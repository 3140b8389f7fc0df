"""Latencies of a run in bounded memory, and the numbers of `stats` and `summary`."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from edgemm.live.events import Quantiles, SourceStats, StageQuantiles, StatsEvent, SummaryEvent
from edgemm.live.ledger import SourceCounts

_LOWEST_MS = 0.001
_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_BUCKETS = 1 + math.ceil(math.log(1e7 / _LOWEST_MS) / _LOG_GROWTH)


class Histogram:
    """Counts of milliseconds in buckets that grow by 2 %, from a microsecond to 10 000 seconds.

    A quantile is within 1 % of the exact one (and never outside the smallest and largest value
    seen), however long the run; the memory is about 1 200 counters. Not thread-safe.
    """

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._lowest, self._highest = math.inf, -math.inf
        self.n = 0

    def add(self, value_ms: float) -> None:
        """Counts one value; what is below a microsecond, or negative, is in the first bucket."""
        index = 0
        if value_ms > _LOWEST_MS:
            index = min(1 + int(math.log(value_ms / _LOWEST_MS) / _LOG_GROWTH), _BUCKETS - 1)
        self._counts[index] += 1
        self.n += 1
        self._lowest = min(self._lowest, value_ms)
        self._highest = max(self._highest, value_ms)

    def quantile(self, q: float) -> float | None:
        """The value below which a part `q` (0…1) of the values lies; None while empty."""
        if not self.n:
            return None
        rank = max(1, math.ceil(q * self.n))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                middle = _LOWEST_MS * _GROWTH ** (index - 0.5) if index else self._lowest
                return min(max(middle, self._lowest), self._highest)
        return self._highest

    def quantiles(self) -> Quantiles:
        """p50, p95 and p99."""
        return Quantiles(self.quantile(0.5), self.quantile(0.95), self.quantile(0.99))


class RunStats:
    """What a run measured, from any thread. `frame_result` is for results about frames; `stage`
    is for everything else that takes time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency = Histogram()
        self._overhead = Histogram()
        self._stages: dict[str, Histogram] = {}
        self._start_s = 0.0
        self._first_result_s: float | None = None
        self._last_t_s = 0.0
        self._last_processed = 0

    def frame_result(self, latency_ms: float, model_ms: float) -> None:
        """A result about a frame: capture → emitted, and how much of it was the model's, whatever else it was asked."""
        with self._lock:
            self._latency.add(latency_ms)
            self._overhead.add(latency_ms - model_ms)

    def stage(self, name: str, value_ms: float) -> None:
        """How long one stage took, once."""
        with self._lock:
            self._stages.setdefault(name, Histogram()).add(value_ms)

    def started(self, t_s: float) -> None:
        """The model is loaded and warm and the sources open: `first_result_s` counts from here."""
        with self._lock:
            self._start_s = self._last_t_s = t_s

    def result(self, t_s: float) -> None:
        """A result was emitted; the first one is remembered."""
        with self._lock:
            if self._first_result_s is None:
                self._first_result_s = t_s - self._start_s

    def stats(
        self,
        t_s: float,
        counts: Mapping[str, SourceCounts],
        sinks_dropped: Mapping[str, int],
    ) -> StatsEvent:
        """The numbers of now; `fps` is since the last call."""
        processed = sum(item.processed for item in counts.values())
        resident_mb = rss_mb()
        with self._lock:
            fps = _rate(processed - self._last_processed, t_s - self._last_t_s)
            self._last_t_s, self._last_processed = t_s, processed
            return StatsEvent(
                sources={name: _source(item) for name, item in counts.items()},
                fps=fps,
                latency_ms=self._latency.quantiles(),
                overhead_ms=self._overhead.quantiles(),
                stages_ms=self._stage_quantiles(),
                rss_mb=resident_mb,
                sinks_dropped=dict(sinks_dropped),
            )

    def summary(
        self,
        t_s: float,
        duration_s: float,
        counts: Mapping[str, SourceCounts],
        sinks_dropped: Mapping[str, int],
    ) -> SummaryEvent:
        """The numbers of the whole run, with totals over the sources."""
        last = self.stats(t_s, counts, sinks_dropped)
        each = list(counts.values())
        reasons = {reason for item in each for reason in item.dropped}
        return SummaryEvent(
            sources=last.sources,
            fps=_rate(sum(item.processed for item in each), duration_s),
            latency_ms=last.latency_ms,
            overhead_ms=last.overhead_ms,
            stages_ms=last.stages_ms,
            rss_mb=last.rss_mb,
            sinks_dropped=last.sinks_dropped,
            first_result_s=self._first_result_s,
            duration_s=duration_s,
            captured=sum(item.captured for item in each),
            processed=sum(item.processed for item in each),
            dropped={r: sum(i.dropped.get(r, 0) for i in each) for r in sorted(reasons)},
            in_flight=sum(item.in_flight for item in each),
            audio_s=sum(item.audio_s for item in each),
            audio_gaps=sum(item.audio_gaps for item in each),
            reconnects=sum(item.reconnects for item in each),
        )

    def _stage_quantiles(self) -> dict[str, StageQuantiles]:
        return {name: StageQuantiles(item.quantile(0.5), item.quantile(0.99)) for name, item in self._stages.items()}


def rss_mb() -> float:
    """The resident memory of this process in 10⁶ bytes."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def _rate(n: int, seconds: float) -> float:
    return n / seconds if seconds > 0 else 0.0


def _source(counts: SourceCounts) -> SourceStats:
    return SourceStats(
        captured=counts.captured,
        processed=counts.processed,
        dropped=dict(counts.dropped),
        in_flight=counts.in_flight,
        audio_s=counts.audio_s,
        audio_gaps=counts.audio_gaps,
        reconnects=counts.reconnects,
    )
