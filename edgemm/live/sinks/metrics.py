"""The run's numbers for Prometheus: `/metrics` over HTTP, names and units by its conventions."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgemm.live.events import ErrorEvent, Event, Quantiles, StageQuantiles, StartedEvent, StatsEvent, StatusEvent
from edgemm.live.sinks.address import cannot_serve, need, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

_READ_S = 5.0
_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}


class PrometheusSink:
    """Serves `http://host:port/metrics` for `prometheus://host:port`, on loopback unless a host is
    named. The numbers are those of the last `stats` (or `summary`), so a scrape costs the pipeline
    nothing. A port that is taken ends the run. On another address everybody who reaches it can read.
    """

    limits = SinkLimits(events=4096)

    def __init__(self, url: str) -> None:
        self._library = need("prometheus_client", "prometheus-client")
        self._url = parse(url, port=9464)
        self.name = self._url.shown
        self.essential = True  # until it is open
        self._numbers = _Numbers()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is served, 0 before."""
        return 0 if self._server is None else int(self._server.server_address[1])

    def open(self, context: SinkContext) -> None:
        """Serves from now on. Raises SinkError where the address cannot be had."""
        registry = self._library.CollectorRegistry()
        registry.register(self._numbers)
        try:
            self._server = _server(self._url.host, self._url.port, registry)
        except OSError as error:
            raise cannot_serve(self.name, error) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="edgemm-metrics")
        self._thread.daemon = True
        self._thread.start()
        self.essential = False

    def handle(self, item: Item) -> None:
        """Remembers the newest numbers."""
        if isinstance(item, Event):
            self._numbers.update(item)

    def close(self) -> None:
        """Ends serving."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _server(host: str, port: int, registry: Any) -> ThreadingHTTPServer:
    import socket

    from prometheus_client.exposition import choose_encoder

    class Handler(BaseHTTPRequestHandler):
        timeout = _READ_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
                return
            encode, kind = choose_encoder(self.headers.get("Accept"))
            body = encode(registry)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A library does not print."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever asked has gone."""

    if os.name == "posix":
        Server.allow_reuse_address = True
    return Server((host, port), Handler)


class _Numbers:
    """A collector of prometheus_client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats: StatsEvent | None = None
        self._bundle = ""
        self._events: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._live: dict[str, bool] = {}

    def update(self, event: Event) -> None:
        """Takes what an event says."""
        with self._lock:
            self._events[event.type] += 1
            if isinstance(event, StatsEvent):
                self._stats = event
            elif isinstance(event, StartedEvent):
                self._bundle = event.bundle
            elif isinstance(event, ErrorEvent):
                self._errors[event.code] += 1
            elif isinstance(event, StatusEvent) and event.source:
                self._live[event.source] = event.state in ("live", "reconnected")

    def describe(self) -> list[Any]:
        """Nothing is computed at registration."""
        return []

    def collect(self) -> Iterator[Any]:
        """The metrics of one scrape."""
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        with self._lock:
            stats, bundle = self._stats, self._bundle
            events, errors, live = dict(self._events), dict(self._errors), dict(self._live)
        yield InfoMetricFamily("edgemm_run", "What runs", value={"bundle": bundle})
        yield _counter("events", "Events by type", "type", events)
        yield _counter("errors", "Error events by code", "code", errors)
        up = GaugeMetricFamily("edgemm_source_up", "Whether a source is live", labels=["source"])
        for source, value in live.items():
            up.add_metric([source], float(value))
        yield up
        if stats is not None:
            yield from _of_stats(stats)


def _of_stats(stats: StatsEvent) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    sources = stats.sources.items()
    yield _counter("frames_captured", "Frames", "source", {n: s.captured for n, s in sources})
    yield _counter("frames_processed", "Frames", "source", {n: s.processed for n, s in sources})
    dropped = CounterMetricFamily("edgemm_frames_dropped", "Frames by reason", labels=["source", "reason"])
    flying = GaugeMetricFamily("edgemm_frames_in_flight", "Frames", labels=["source"])
    for name, source in sources:
        flying.add_metric([name], source.in_flight)
        for reason, n in source.dropped.items():
            dropped.add_metric([name, reason], n)
    yield from (dropped, flying)
    yield GaugeMetricFamily("edgemm_frames_per_second", "Processed, since the last stats", value=stats.fps)
    yield _counter("audio_seconds", "Sound captured", "source", {n: s.audio_s for n, s in sources})
    yield _counter("audio_gaps", "Gaps in the sound", "source", {n: s.audio_gaps for n, s in sources})
    yield _counter("reconnects", "Sources that came back", "source", {n: s.reconnects for n, s in sources})
    yield _counter("sink_dropped", "What slow sinks missed", "sink", stats.sinks_dropped)
    yield _quantiles("latency_seconds", "Capture to result, over the run", {(): stats.latency_ms})
    yield _quantiles("overhead_seconds", "The same less the model's time", {(): stats.overhead_ms})
    stages = {(("stage", name),): stage for name, stage in stats.stages_ms.items()}
    yield _quantiles("stage_seconds", "Time of a stage, over the run", stages)
    yield GaugeMetricFamily("edgemm_resident_memory_bytes", "Of this process", value=stats.rss_mb * 1e6)


def _counter(name: str, text: str, label: str, values: dict[str, Any]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"edgemm_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _quantiles(name: str, text: str, values: Mapping[Any, Quantiles | StageQuantiles]) -> Any:
    """A summary with quantiles alone, in seconds."""
    from prometheus_client.core import Metric

    metric = Metric(f"edgemm_{name}", text, "summary")
    for labels, quantiles in values.items():
        for field, quantile in _QUANTILES.items():
            value_ms = getattr(quantiles, field, None)
            if value_ms is not None:
                metric.add_sample(f"edgemm_{name}", {**dict(labels), "quantile": quantile}, value_ms / 1e3)
    return metric
