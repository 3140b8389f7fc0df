"""Clients of the live page: plain sockets, and a WebSocket client."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext
from edgemm.live.web import WebSink
from tests.live.live_fakes import FakeModel, KeepSink, until

__all__ = [
    "CONTEXT",
    "PATTERN",
    "Page",
    "WebSink",
    "address",
    "browser_runs",
    "connect",
    "flood",
    "get",
    "mjpeg",
    "request",
    "running",
]

pytest.importorskip("aiohttp", reason="the extra web is not installed")
connect = pytest.importorskip("websockets.sync.client", reason="the extra sinks is not installed").connect
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed

CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)
PATTERN = "test://?size=320x240&fps=20"


@contextmanager
def running(sink, model=None, camera=PATTERN, **options):
    """A pipeline with the page; it is stopped at the end."""
    pipeline = Pipeline(model or FakeModel(), StreamOptions(cameras=(camera,), **options), [sink])
    pipeline.start()
    try:
        assert sink.port
        yield pipeline
    finally:
        pipeline.stop()


@contextmanager
def browser_runs(*limits):
    """Starts runs on a browser: each with its sink, and a sink of `limits` that keeps what comes. They are stopped at
    the end."""
    started = []

    def start(model=None, **options):
        sink, keep = WebSink("127.0.0.1:0"), KeepSink(*limits)
        options = {"cameras": ("browser://",), **options}
        pipeline = Pipeline(model or FakeModel(), StreamOptions(**options), [sink, keep])
        pipeline.start()
        started.append(pipeline)
        assert sink.port
        until(lambda: keep.of("started") and sink._server.senders._wanted)
        return sink, keep, pipeline

    try:
        yield start
    finally:
        for pipeline in started:
            pipeline.stop()


def address(sink):
    return ("127.0.0.1", sink.port)


def get(sink, path="/", *, host=None, timeout_s=5.0, **headers):
    """Status, headers and the first bytes of the body of a GET."""
    with socket.create_connection(address(sink), timeout_s) as connection:
        connection.sendall(request(sink, path, host=host, connection="close", **headers))
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    return parsed(data)


def flood(send, n, every_s=0.0):
    """Sends until it fails."""
    for _ in range(n):
        send()
        time.sleep(every_s)


def request(sink, path, *, host=None, **headers):
    lines = [f"GET {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{sink.port}'}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parsed(data):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), {line.split(":")[0].lower(): line.split(":", 1)[1].strip() for line in rest}, body


class Page:
    """Follows `/events` as the page does, in a thread."""

    def __init__(self, sink, query="", **options):
        self.heard = []
        self.connection = connect(f"ws://127.0.0.1:{sink.port}/events{query}", proxy=None, **options)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        with self.connection, suppress(ConnectionClosed):
            for text in self.connection:
                self.heard.append(json.loads(text))

    def of(self, kind):
        return [item for item in self.heard if item.get("type") == kind]

    def has(self, key):
        return [item[key] for item in self.heard if key in item and "type" not in item]

    def send(self, document):
        self.connection.send(json.dumps(document))

    def close(self):
        self.connection.close()
        self.thread.join(5)
        assert not self.thread.is_alive()


def mjpeg(sink, seconds, path="/stream.mjpg"):
    """The JPEGs that come in so many seconds."""
    pictures, data = [], b""
    deadline = time.monotonic() + seconds
    with socket.create_connection(address(sink), 5) as connection:
        connection.sendall(request(sink, path))
        connection.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                data += connection.recv(65536)
            except TimeoutError:
                continue
            while (end := data.find(b"\xff\xd9")) >= 0:
                pictures.append(data[data.find(b"\xff\xd8") : end + 2])
                data = data[end + 2 :]
    return pictures
