"""The live page's server: what it serves, whom it refuses, how it ends."""

from __future__ import annotations

import io
import json
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import cv2
import numpy as np
import psutil
import pytest

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sources.testing import age_s
from tests.live.live_fakes import FakeModel, open_files, until
from tests.live.web_clients import CONTEXT, PATTERN, Page, WebSink, address, flood, get, mjpeg, request, running

exceptions = pytest.importorskip("websockets.exceptions")


@pytest.fixture
def page():
    """A page without a run."""
    sinks = []

    def opened(address="127.0.0.1:0", context=CONTEXT, **options):
        sinks.append(WebSink(address, **options))
        sinks[-1].open(context)
        return sinks[-1]

    yield opened
    for sink in sinks:
        sink.close()


# --- what it serves -------------------------------------------------------------------------------


def test_the_page_and_all_that_it_names_come_from_here(page):
    sink = page()
    status, headers, body = get(sink)
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in body
    assert b"https://" not in body
    for name in ("page.css", "page.js", "boxes.js", "capture.js", "history.js", "numbers.js", "player.js", "record.js",
                 "rtc.js", "timeline.js", "worklet.js", "icon.svg"):  # fmt: skip
        assert get(sink, f"/{name}")[0] == 200, name
    assert get(sink, "/nothing")[0] == 404


def test_pictures_are_encoded_once_for_all():
    sink = WebSink("127.0.0.1:0")
    with running(sink):
        until(sink.pictures.sources)
        with ThreadPoolExecutor(5) as pool:
            seen = list(pool.map(lambda _: mjpeg(sink, 2.0), range(5)))
        for pictures in seen:
            assert 8 <= len(pictures) <= 22
        image = cv2.imdecode(np.frombuffer(seen[0][-1], np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (240, 320, 3)
        assert 0 <= age_s(image, time.monotonic()) < 3
        assert len({bytes(picture) for picture in seen[0]}) > 6
        assert sink.pictures.encoded <= 26
        until(lambda: sink.pictures.viewers == 0, 3)
        before = sink.pictures.encoded
        time.sleep(0.4)
        assert sink.pictures.encoded == before


def test_events_are_those_of_json_and_a_late_page_is_told_the_state():
    out, sink = io.StringIO(), WebSink("127.0.0.1:0")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(PATTERN,), stats_every_s=0.2), [JsonlSink(out), sink])
    pipeline.start()
    first = Page(sink)
    until(lambda: len(first.of("labels")) > 3 and len(first.of("stats")) > 2)
    late = Page(sink)
    until(lambda: late.of("labels"))
    assert [item["type"] for item in late.heard[1:3]] == ["started", "status"]
    assert late.heard[0]["page"]["sizes_px"] == {"camera": [320, 240]}
    pipeline.finish()
    pipeline.wait()
    until(lambda: not (first.thread.is_alive() or late.thread.is_alive()))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    got = [item for item in first.heard if "type" in item]
    assert got[0]["type"] == "started"
    assert got[-1]["type"] == "summary"
    by_id = {line["id"]: line for line in lines}
    assert all(by_id[item["id"]] == item for item in got)
    assert len([item for item in got if item["type"] == "labels"]) == len(
        [line for line in lines if line["type"] == "labels" and line["id"] >= first.of("labels")[0]["id"]]
    )


def test_a_question_is_answered_through_the_page():
    sink = WebSink("127.0.0.1:0")
    with running(sink):
        page = Page(sink)
        page.send({"ask": "what is here?"})
        until(lambda: page.of("answer"))
        assert page.has("asked") == [{"question_id": 0}]
        assert page.of("answer")[0]["question"] == "what is here?"
        assert page.of("answer")[0]["text"] == "it is here"
        assert len(page.of("answer_delta")) == 3
        page.send({"ask": "x" * 3000})
        page.send({"nonsense": 1})
        until(lambda: len(page.has("error")) == 2)
        assert all(error["code"] == "input" for error in page.has("error"))
        page.close()


def test_tasks_are_switched_for_everybody_and_counted_as_paused():
    sink = WebSink("127.0.0.1:0")
    with running(sink, stats_every_s=0.1) as pipeline:
        page, other = Page(sink), Page(sink)
        until(lambda: page.of("labels"))
        page.send({"task": "classify", "on": False})
        until(lambda: other.heard and other.has("page")[-1]["tasks"]["classify"] is False)
        time.sleep(0.2)
        quiet = len(page.of("labels"))
        time.sleep(0.3)
        assert len(page.of("labels")) == quiet
        page.send({"ask": "still there?"})
        until(lambda: page.of("answer"))
        page.send({"task": "classify", "on": True})
        until(lambda: len(page.of("labels")) > quiet)
        page.send({"task": "fly", "on": True})
        counts = pipeline.inputs.counts()["camera"]
        assert counts.dropped["paused"] > 2
        assert counts.captured == counts.processed + sum(counts.dropped.values()) + counts.in_flight
        page.close()
        other.close()


# --- whom it refuses ------------------------------------------------------------------------------


def test_a_token_is_needed_where_others_can_reach_it(page):
    sink = page("0.0.0.0:0")
    assert "?token=" in sink.url
    token = sink.url.partition("?token=")[2]
    assert len(token) >= 20
    for path in ("/", "/page.js", "/stream.mjpg", "/events", "/camera", "/mic", "/nothing"):
        assert get(sink, path)[0] == 401, path
    assert get(sink, "/?token=wrong")[0] == 401
    status, headers, _ = get(sink, f"/?token={token}")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert get(sink, "/", Cookie=cookie.partition(";")[0])[0] == 200
    assert get(sink, "/page.js", Authorization=f"Bearer {token}")[0] == 200
    with pytest.raises(exceptions.InvalidStatus, match="401"):
        Page(sink, "?token=wrong")
    Page(sink, f"?token={token}").close()


def test_the_token_may_be_ones_own(page, monkeypatch):
    monkeypatch.setenv("EDGEMM_SINK_TOKEN", "sesame")
    sink = page("0.0.0.0:0")
    assert sink.url.endswith("/?token=sesame")
    assert get(sink, "/?token=sesame")[0] == 303


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "[::"])
def test_names_that_others_point_here_are_refused(page, host):
    assert get(page(), "/", host=host)[0] in (400, 403)


def test_other_names_of_this_machine_are_served(page):
    sink = page()
    for host in ("localhost", "localhost:1234", "[::1]:1", "127.0.0.1"):
        assert get(sink, "/", host=host)[0] == 200, host


def test_pages_of_other_sites_are_refused(page):
    sink = page()
    own = f"http://127.0.0.1:{sink.port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1.evil.example"):
        assert get(sink, "/", Origin=origin)[0] == 403, origin
        with pytest.raises(exceptions.InvalidStatus, match="403"):
            Page(sink, origin=origin)
    assert get(sink, "/stream.mjpg", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert get(sink, "/", Origin=own)[0] == 200
    Page(sink, origin=own).close()


@pytest.mark.parametrize(
    "path", ["/../server.py", "/..%2fserver.py", "/%2e%2e/server.py", "//server.py", "/page.js/../../sink.py", "/.."]
)
def test_paths_lead_nowhere_else(page, path):
    assert get(page(), path)[0] in (400, 404)


def test_messages_too_large_or_too_many_end_the_connection(page):
    sink = page()
    before = psutil.Process().memory_info().rss
    large = Page(sink)
    until(lambda: large.heard)
    # The header of a message of 1 GB, and the beginning of it.
    large.connection.socket.sendall(b"\x81\xff" + (1 << 30).to_bytes(8) + bytes(4))
    with pytest.raises(OSError, match=r"reset|[Bb]roken|closed|descriptor"):
        flood(lambda: large.connection.socket.sendall(bytes(1 << 20)), 256)
    large.thread.join(5)
    assert psutil.Process().memory_info().rss - before < 60e6
    eager = Page(sink)
    with pytest.raises(exceptions.ConnectionClosed):
        flood(lambda: eager.send({"nonsense": 1}), 400, 0.005)
    assert eager.connection.close_code == 1008


def test_other_requests_than_get_and_long_ones_are_refused(page):
    sink = page()
    for text in (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n" + bytes(100_000),
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: d\xc3\xa9\r\n\r\n",
    ):
        with socket.create_connection(address(sink), 5) as connection:
            connection.sendall(text)
            answer = connection.recv(200)
        assert answer.split()[1] in (b"400", b"405"), answer
    assert get(sink)[0] == 200


def test_a_thousand_connections_are_too_many_and_the_run_goes_on():
    sink = WebSink("127.0.0.1:0", clients=20)
    with running(sink) as pipeline, ExitStack() as stack:
        page = Page(sink)
        until(lambda: page.of("labels"))
        held = [stack.enter_context(socket.create_connection(address(sink), 5)) for _ in range(300)]
        refused = 0
        for connection in held[-200:]:
            connection.settimeout(5)
            refused += connection.recv(100).startswith(b"HTTP/1.1 503")
        assert refused == 200
        before = len(page.of("labels"))
        until(lambda: len(page.of("labels")) > before + 5)
        assert not pipeline.over
        stack.close()
        until(lambda: _served(sink))
        page.close()


def _served(sink):
    try:
        return get(sink)[0] == 200
    except (OSError, IndexError):
        return False


def test_connections_that_ask_for_nothing_are_closed(page, monkeypatch):
    monkeypatch.setattr("edgemm.live.web.sink.IDLE_S", 0.5)
    sink = page()
    with socket.create_connection(address(sink), 5) as silent, socket.create_connection(address(sink), 5) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
        for connection in (silent, slow):
            assert _closed(connection)


def _closed(connection):
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_port_that_is_taken_ends_the_run(page):
    sink = page()
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(PATTERN,)), [WebSink(f"127.0.0.1:{sink.port}")])
    with pytest.raises(SinkError, match="cannot be served"):
        pipeline.run()


@pytest.mark.parametrize("text", ["127.0.0.1:no", "user:word@host:1", "127.0.0.1:1/path", "127.0.0.1:99999"])
def test_addresses_that_are_none(text):
    with pytest.raises(UsageError):
        WebSink(text)


def test_tls(page, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("openssl is not installed")
    sink = page(cert=cert, key=key)
    assert sink.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(cert))
    with (
        socket.create_connection(address(sink), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(request(sink, "/", host="localhost", connection="close"))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    with pytest.raises(UsageError, match="cannot be used for TLS"):
        WebSink("127.0.0.1:0", cert=key)
    with pytest.raises(UsageError, match="without a certificate"):
        WebSink("127.0.0.1:0", key=key)


# --- who is slow, and how it ends -----------------------------------------------------------------


def deaf(sink, path, **headers):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address(sink))
    connection.sendall(request(sink, path, **headers))
    return connection


UPGRADE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def test_viewers_that_do_not_read_are_dropped_and_slow_no_one():
    sink = WebSink("127.0.0.1:0", patience_s=0.7)
    with running(sink, camera="test://?size=640x480&fps=20") as pipeline:
        page = Page(sink)
        until(lambda: len(page.of("labels")) > 3)
        with deaf(sink, "/stream.mjpg"), deaf(sink, "/events", **UPGRADE):
            for n in range(300):
                pipeline.emitter.emit(StatusEvent(source="camera", state="live", reason=f"{n} " + "x" * 20_000))
                time.sleep(0.001)
            until(lambda: len([e for e in page.of("error") if "did not keep up" in e["message"]]) == 2, 15)
            seen = page.of("labels")
            gaps = np.diff([e["t_s"] for e in seen])
            assert gaps.max() < 1.0
        numbers = [e["id"] for e in page.heard if "type" in e]
        assert numbers == sorted(numbers)
        assert len([e for e in page.of("status") if len(e["reason"]) > 10_000]) == 300
        page.close()


def test_it_ends_within_a_second_with_open_clients_and_leaves_nothing():
    def threads():
        return {thread.name for thread in threading.enumerate() if thread.name.startswith(("edgemm", "asyncio"))}

    before_threads, before_files = threads(), open_files()
    sink = WebSink("127.0.0.1:0")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=(PATTERN,)), [sink])
    pipeline.start()
    pages = [Page(sink) for _ in range(3)]
    until(lambda: all(page.of("labels") for page in pages))
    silent = [socket.create_connection(address(sink)), deaf(sink, "/stream.mjpg"), deaf(sink, "/events", **UPGRADE)]
    time.sleep(0.3)
    port, began = sink.port, time.monotonic()
    pipeline.stop()
    assert pipeline.over
    assert time.monotonic() - began < 1.0
    for page in pages:
        page.thread.join(2)
        assert page.of("summary")
    for connection in silent:
        connection.close()
    until(lambda: threads() <= before_threads, 3)
    until(lambda: open_files() <= before_files, 3)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_viewer_that_is_gone_is_noticed():
    sink = WebSink("127.0.0.1:0")
    with running(sink):
        until(sink.pictures.sources)
        gone = deaf(sink, "/stream.mjpg")
        until(lambda: sink.pictures.viewers == 1)
        gone.close()
        until(lambda: sink.pictures.viewers == 0, 2)
