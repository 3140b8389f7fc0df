"""The WebSocket sink: real clients, good ones, dead ones and uninvited ones."""

from __future__ import annotations

import io
import json
import socket
import threading
import time

import pytest

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import StatsEvent, StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sinks.websocket import WebSocketSink
from tests.live.live_fakes import FakeModel, HeldModel, KeepSink, open_files, until

connect = pytest.importorskip("websockets.sync.client", reason="the extra sinks is not installed").connect
exceptions = pytest.importorskip("websockets.exceptions")

CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)


class Reader:
    """Reads until the server ends the connection."""

    def __init__(self, url, **options):
        self.lines = []
        self.connection = connect(url, **options)
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        with self.connection:
            for text in self.connection:
                self.lines.append(text)

    def join(self):
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.lines


def opened(sink, context=CONTEXT):
    sink.open(context)
    return f"ws://127.0.0.1:{sink.port}"


def number(n):
    return StatusEvent(id=n, t_s=n / 10, source="camera", state="live", reason="x" * 1000)


@pytest.mark.parametrize("fast", [False, True])
def test_clients_get_the_very_lines_of_json(silent_clip, fast):
    out, model, sink = io.StringIO(), HeldModel(), WebSocketSink("ws://127.0.0.1:0")
    options = StreamOptions(cameras=(str(silent_clip),), as_fast_as_possible=fast, stats_every_s=0.2)
    pipeline = Pipeline(model, options, [JsonlSink(out), sink])
    pipeline.start()
    readers = [Reader(f"ws://127.0.0.1:{sink.port}") for _ in range(2)]
    until(lambda: all(reader.lines for reader in readers))
    model.go.set()
    pipeline.wait()
    lines = out.getvalue().splitlines()
    assert len(lines) > 20
    for reader in readers:
        assert reader.join() == lines


def test_a_late_client_is_told_what_it_missed():
    sink = WebSocketSink("ws://127.0.0.1:0")
    url = opened(sink)
    for n in range(6):
        sink.handle(number(n))
    sink.handle(StatusEvent(id=6, source="mic", state="lost"))
    reader = Reader(url)
    until(lambda: len(reader.lines) == 2)
    sink.handle(number(7))
    sink.close()
    assert [json.loads(line)["id"] for line in reader.join()] == [5, 6, 7]


def test_a_client_that_never_reads_is_dropped_and_nobody_waits():
    reports = []
    sink = WebSocketSink("ws://127.0.0.1:0", ping_s=0.2, patience_s=0.6)
    context = SinkContext(has_picture=True, has_sound=False, media_time=False, wall_offset_s=0.0,
                          stop=lambda: None, report=reports.append)  # fmt: skip
    url = opened(sink, context)
    good = Reader(url)
    deaf = socket.create_connection(("127.0.0.1", sink.port))
    deaf.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    until(lambda: len(sink._clients) == 2)
    began, sent, slowest = time.monotonic(), 0, 0.0
    while not reports and time.monotonic() - began < 5:
        before = time.monotonic()
        sink.handle(number(sent))
        slowest = max(slowest, time.monotonic() - before)
        sent += 1
        time.sleep(0.001)
    assert time.monotonic() - began < 0.2 + 0.6 + 1.0
    assert slowest < 0.25
    assert isinstance(reports[0], SinkError)
    assert "did not keep up" in reports[0].message
    sink.close()
    deaf.close()
    assert [json.loads(line)["id"] for line in good.join()] == list(range(sent))
    assert len(reports) == 1


def test_a_flood_is_bounded_too():
    """Full buffers, so that not even a ping goes out."""
    reports = []
    sink = WebSocketSink("ws://127.0.0.1:0", ping_s=60.0, patience_s=0.5)
    context = SinkContext(has_picture=True, has_sound=False, media_time=False, wall_offset_s=0.0,
                          stop=lambda: None, report=reports.append)  # fmt: skip
    url = opened(sink, context)
    with connect(url, close_timeout=0.2):  # reads a few messages ahead, then no more
        until(lambda: sink._clients)
        big = StatusEvent(id=0, state="live", reason="x" * 100_000)
        began = time.monotonic()
        while not reports and time.monotonic() - began < 5:
            sink.handle(big)
        assert reports
    sink.close()


def test_a_token_is_asked_for(monkeypatch):
    monkeypatch.delenv("EDGEMM_SINK_TOKEN", raising=False)
    with pytest.raises(UsageError, match="needs a token"):
        WebSocketSink("ws://0.0.0.0:0")
    sink = WebSocketSink("ws://0.0.0.0:0?token=s3same")
    assert "s3same" not in sink.name
    url = opened(sink)
    for wrong in ({}, {"additional_headers": {"Authorization": "Bearer other"}}):
        with pytest.raises(exceptions.InvalidStatus) as refused:
            connect(url, **wrong)
        assert refused.value.response.status_code == 401
    with pytest.raises(exceptions.InvalidStatus):
        connect(url + "/?token=s3sam")
    with connect(url, additional_headers={"Authorization": "Bearer s3same"}), connect(url + "/?token=s3same"):
        until(lambda: len(sink._clients) == 2)
    sink.close()
    monkeypatch.setenv("EDGEMM_SINK_TOKEN", "of the environment")
    assert WebSocketSink("ws://0.0.0.0:0")._token == "of the environment"


def test_pages_of_others_may_not_listen(monkeypatch):
    monkeypatch.delenv("EDGEMM_SINK_TOKEN", raising=False)
    sink = WebSocketSink("ws://127.0.0.1:0")
    url = opened(sink)
    for header in ({"origin": "https://example.com"}, {"additional_headers": {"Host": "example.com"}}):
        with pytest.raises(exceptions.InvalidStatus) as refused:
            connect(url, **header)
        assert refused.value.response.status_code == 403
    with connect(url, origin="http://localhost:3000"):
        until(lambda: sink._clients)
    sink.close()


def test_limits_on_clients_and_on_what_they_send():
    sink = WebSocketSink("ws://127.0.0.1:0", clients=1, message_bytes=100)
    url = opened(sink)
    with connect(url) as first:
        until(lambda: sink._clients)
        with pytest.raises(exceptions.InvalidStatus) as refused:
            connect(url)
        assert refused.value.response.status_code == 503
        first.send("x" * 101)
        with pytest.raises(exceptions.ConnectionClosed) as closed:
            first.recv(timeout=5)
        assert closed.value.rcvd.code == 1009
    sink.close()


def test_questions_are_answered():
    sink, keep = WebSocketSink("ws://127.0.0.1:0"), KeepSink()
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=("test://",)), [sink, keep])
    pipeline.start()
    with connect(f"ws://127.0.0.1:{sink.port}") as client:
        client.send('{"ask": "where is it?"}')
        client.send("[1")
        answers = []
        while len(answers) < 3:
            message = json.loads(client.recv(timeout=10))
            if "type" not in message or message["type"] == "answer":
                answers.append(message)
    pipeline.stop()
    asked = next(a["asked"] for a in answers if "asked" in a)
    answer = next(a for a in answers if a.get("type") == "answer")
    assert asked["question_id"] == answer["question_id"]
    assert answer["question"] == "where is it?"
    assert next(a["error"]["code"] for a in answers if "error" in a) == "input"


def test_a_model_that_cannot_answer_says_so():
    sink = WebSocketSink("ws://127.0.0.1:0")
    with connect(opened(sink)) as client:
        client.send('{"ask": "where?"}')
        assert json.loads(client.recv(timeout=5))["error"]["code"] == "task"
    sink.close()


def test_a_taken_port_ends_the_run_clearly(silent_clip):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SinkError, match="Address already in use") as error:
            Pipeline(FakeModel(), StreamOptions(cameras=(str(silent_clip),)), [url]).run()
    assert "another program" in error.value.hint


def test_a_dropped_client_is_an_error_event_of_the_run():
    sink, keep = WebSocketSink("ws://127.0.0.1:0", ping_s=0.1, patience_s=0.3), KeepSink()
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=("test://",)), [sink, keep])
    pipeline.start()
    with connect(f"ws://127.0.0.1:{sink.port}", max_queue=1, close_timeout=0.2):
        until(lambda: keep.of("error"))
    (error,) = keep.of("error")
    assert error.code == "sink"
    assert error.hint
    pipeline.stop()
    assert keep.events[-1].type == "summary"
    assert isinstance(keep.events[-2], StatsEvent)


def test_nothing_leaks():
    def once():
        sink = WebSocketSink("ws://127.0.0.1:0")
        with connect(opened(sink)) as client:
            sink.handle(number(0))
            client.recv(timeout=5)
            sink.close()

    once()
    threads, files = threading.active_count(), open_files()
    for _ in range(30):
        once()
    assert (threading.active_count(), open_files()) == (threads, files)
