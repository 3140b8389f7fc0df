"""The Prometheus sink, scraped over HTTP and read by Prometheus's own parser."""

from __future__ import annotations

import socket
import threading
import urllib.error
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from edgemm.errors import SinkError
from edgemm.live.events import ErrorEvent, SourceStats, StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext, SinkLimits
from edgemm.live.sinks.metrics import PrometheusSink
from edgemm.live.stats import RunStats
from tests.live.live_fakes import FakeModel, KeepSink, open_files

parser = pytest.importorskip("prometheus_client.parser", reason="the extra sinks is not installed")
openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)
URL = "prometheus://127.0.0.1:0"


def scrape(sink, path="/metrics", **headers):
    request = Request(f"http://127.0.0.1:{sink.port}{path}", headers=headers)
    with build_opener(ProxyHandler({})).open(request, timeout=5) as answer:
        return answer.read().decode()


def samples(text, parse=parser.text_string_to_metric_families):
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse(text) for s in family.samples}


class LastScrape(PrometheusSink):
    """Scraped after the last event, before it closes."""

    def close(self):
        self.text = scrape(self)
        self.open_text = scrape(self, Accept="application/openmetrics-text; version=1.0.0")
        super().close()


@pytest.fixture(scope="module")
def scraped(talking_clip):
    sink = LastScrape(URL)
    slow = KeepSink(SinkLimits(events=2), wait_s=0.1)
    slow.name = "slow"
    options = StreamOptions(cameras=(str(talking_clip),), every_s=0.1)
    return sink, Pipeline(FakeModel(work_s=0.01), options, [sink, slow]).run()


def test_the_numbers_are_those_of_the_summary(scraped):
    sink, summary = scraped
    got = samples(sink.text)

    def value(name, **labels):
        return got.pop((f"edgemm_{name}", frozenset(labels.items())))

    assert summary.processed > 5
    assert summary.sinks_dropped["slow"] > 0
    for name, source in summary.sources.items():
        assert value("frames_captured_total", source=name) == source.captured
        assert value("frames_processed_total", source=name) == source.processed
        assert value("frames_in_flight", source=name) == source.in_flight
        assert value("audio_seconds_total", source=name) == source.audio_s
        assert value("audio_gaps_total", source=name) == source.audio_gaps
        assert value("reconnects_total", source=name) == source.reconnects
        for reason, n in source.dropped.items():
            assert value("frames_dropped_total", source=name, reason=reason) == n
        assert value("source_up", source=name) == 0.0
    assert value("frames_per_second") == summary.fps
    assert value("resident_memory_bytes") == summary.rss_mb * 1e6
    for name, n in summary.sinks_dropped.items():
        assert value("sink_dropped_total", sink=name) == n
    for key, quantile in (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99")):
        assert value("latency_seconds", quantile=quantile) == getattr(summary.latency_ms, key) / 1e3
        assert value("overhead_seconds", quantile=quantile) == getattr(summary.overhead_ms, key) / 1e3
    for stage, times in summary.stages_ms.items():
        assert value("stage_seconds", stage=stage, quantile="0.5") == times.p50 / 1e3
        assert value("stage_seconds", stage=stage, quantile="0.99") == times.p99 / 1e3
    assert value("run_info", bundle="fake") == 1.0
    assert value("events_total", type="summary") == 1.0
    assert {name for name, _ in got} == {"edgemm_events_total"}  # and nothing else is there


def test_both_formats_say_the_same(scraped):
    sink, _ = scraped
    parse = openmetrics.text_string_to_metric_families
    assert samples(sink.open_text, parse) == samples(sink.text)


def test_two_cameras_gaps_and_errors():
    sink = PrometheusSink(URL)
    sink.open(CONTEXT)
    sink.handle(StatusEvent(source='a "b"\n', state="live"))
    sink.handle(ErrorEvent(code="sink", message="m"))
    stats = RunStats().stats(1.0, {}, {})
    stats.sources.update({'a "b"\n': SourceStats(captured=3, dropped={"stale": 1}), "mic": SourceStats(audio_gaps=2)})
    sink.handle(stats)
    got = samples(scrape(sink))
    assert got["edgemm_source_up", frozenset({("source", 'a "b"\n')})] == 1.0
    assert got["edgemm_errors_total", frozenset({("code", "sink")})] == 1.0
    assert got["edgemm_audio_gaps_total", frozenset({("source", "mic")})] == 2.0
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        scrape(sink, "/secret")
    missing.value.close()
    sink.close()


def test_a_taken_port_ends_the_run_clearly(silent_clip):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"prometheus://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SinkError, match="Address already in use"):
            Pipeline(FakeModel(), StreamOptions(cameras=(str(silent_clip),)), [url]).run()


def test_nothing_leaks():
    def once():
        sink = PrometheusSink(URL)
        sink.open(CONTEXT)
        with socket.create_connection(("127.0.0.1", sink.port)):  # one that says nothing
            scrape(sink)
        sink.close()

    once()
    threads, files = threading.active_count(), open_files()
    for _ in range(30):
        once()
    assert threading.active_count() <= threads + 1  # the last silent one may be about to end
    assert open_files() <= files + 1
