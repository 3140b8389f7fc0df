"""The MQTT sink against a real mosquitto: killed, restarted, refusing, absent."""

from __future__ import annotations

import io
import json
import socket
import threading
import time

import pytest

from edgemm.errors import UsageError
from edgemm.live.events import StatsEvent, StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext, SinkLimits, SinkQueue
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sinks.mqtt import MqttSink
from edgemm.live.stats import RunStats
from tests.live.live_fakes import FakeModel, HeldModel, KeepSink, open_files, until
from tests.rig.broker import MOSQUITTO, Broker
from tests.rig.network import free_port

mqtt = pytest.importorskip("paho.mqtt.client", reason="the extra sinks is not installed")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed (apt-get install mosquitto)")


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


class Subscriber:
    """Every message under a prefix, through every restart."""

    def __init__(self, port, topic="robot/#"):
        self.messages, self.there = [], threading.Event()
        client = self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_connect = lambda c, *_: c.subscribe(topic, qos=1)
        client.on_subscribe = lambda *_: self.there.set()
        client.on_message = lambda c, d, message: self.messages.append(message)
        client.reconnect_delay_set(0.05, 0.05)
        client.connect("127.0.0.1", port, keepalive=5)
        client.loop_start()
        assert self.there.wait(5)

    @property
    def texts(self):
        return [message.payload.decode() for message in self.messages]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def subscriber(broker):
    subscriber = Subscriber(broker.port)
    yield subscriber
    subscriber.close()


def context(reports=None):
    return SinkContext(
        has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None,
        report=(reports if reports is not None else []).append,
    )  # fmt: skip


def status(n):
    return StatusEvent(id=n, source="camera", state="live")


@needs_broker
@pytest.mark.parametrize("fast", [False, True])
def test_a_broker_gets_the_very_lines_of_json(broker, subscriber, silent_clip, fast):
    out, sink = io.StringIO(), MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot")
    options = StreamOptions(cameras=(str(silent_clip),), as_fast_as_possible=fast)
    Pipeline(FakeModel(), options, [JsonlSink(out), sink]).run()
    lines = out.getvalue().splitlines()
    assert len(lines) > 20
    until(lambda: len(subscriber.texts) >= len(lines))
    stats = [line for line in subscriber.texts if json.loads(line)["type"] == "stats"]
    assert stats
    rest = [line for line in lines if json.loads(line)["type"] != "stats"]
    assert [line for line in subscriber.texts if line not in stats] == rest
    assert set(stats) <= set(lines)
    assert {m.topic for m in subscriber.messages} == {f"robot/{json.loads(line)['type']}" for line in lines}


@needs_broker
def test_a_broker_that_is_killed_mid_run_and_comes_back(broker, subscriber):
    sink, keep = MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot"), KeepSink()
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=("test://",)), [sink, keep])
    pipeline.start()
    until(lambda: len(subscriber.messages) > 20)
    broker.kill()
    before = len(keep.events)
    time.sleep(0.7)
    assert len(keep.events) > before + 10  # nothing waits for a broker
    subscriber.there.clear()
    broker.start()
    assert subscriber.there.wait(5)
    n = len(subscriber.messages)
    until(lambda: len(subscriber.messages) > n + 10)
    returned_s = pipeline.clock.now_s()
    until(lambda: json.loads(subscriber.texts[-1])["t_s"] > returned_s + 1.0)
    pipeline.stop()
    assert "is lost" in keep.of("error")[0].message
    assert len(keep.of("error")) <= 2
    got = {json.loads(text)["id"] for text in subscriber.texts}
    late = [e for e in keep.events if e.t_s > returned_s and e.type == "labels" and e.id < max(got)]
    assert late
    assert not {e.id for e in late} - got  # all that came after the return is there


@needs_broker
def test_what_waits_while_there_is_no_broker_arrives_in_order(broker, subscriber):
    """Nobody subscribes to a broker that is dead, so the sink finds it later than the subscriber does."""
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot")
    broker.kill()
    reports = []
    sink.open(context(reports))
    until(lambda: reports)
    assert "cannot be reached: Connection refused" in reports[0].message
    assert "again" in reports[0].hint
    subscriber.there.clear()
    waiting = threading.Thread(target=lambda: [sink.handle(status(n)) for n in range(50)])
    waiting.start()
    time.sleep(0.5)
    broker.start()
    assert subscriber.there.wait(5)
    waiting.join(10)
    sink.close()
    until(lambda: len(subscriber.messages) >= 50)
    assert [json.loads(text)["id"] for text in subscriber.texts] == list(range(50))
    assert len(reports) == 1


@needs_broker
def test_the_last_will_and_what_is_kept(broker):
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot")
    sink.open(context())
    sink.handle(status(3))
    until(lambda: not sink._unacknowledged)
    late = Subscriber(broker.port)
    until(lambda: late.texts)
    assert json.loads(late.texts[0])["id"] == 3
    sink._client.socket().shutdown(socket.SHUT_RDWR)  # as if the process had died
    until(lambda: len(late.texts) > 1)
    will = json.loads(late.texts[1])
    assert (will["type"], will["state"], late.messages[1].topic) == ("status", "lost", "robot/status")
    sink.close()
    n = len(late.texts)
    time.sleep(0.2)
    assert len(late.texts) == n  # who takes leave leaves no will
    late.close()


@needs_broker
def test_a_wrong_password_is_said_without_it(tmp_path):
    broker = Broker(tmp_path, password="s3same")
    reports = []
    sink = MqttSink(f"mqtt://robot:0pen@127.0.0.1:{broker.port}/robot")
    sink.open(context(reports))
    until(lambda: reports)
    assert "refuses" in reports[0].message
    assert "0pen" not in str(reports[0]) + sink.name + repr(sink._url)
    sink.close()
    right = MqttSink(f"mqtt://robot:s3same@127.0.0.1:{broker.port}/robot")
    right.open(context(reports))
    until(lambda: right._connected)
    right.close()
    broker.kill()
    assert all("refuses" in report.message for report in reports)


def test_a_run_without_a_broker_goes_on_and_ends_soon(silent_clip):
    port = free_port()
    keep, model = KeepSink(), HeldModel()
    sinks = [keep, MqttSink(f"mqtt://robot:s3same@127.0.0.1:{port}/robot")]
    pipeline = Pipeline(model, StreamOptions(cameras=(str(silent_clip),), as_fast_as_possible=True), sinks)
    pipeline.start()
    time.sleep(0.5)
    model.go.set()
    summary = pipeline.wait()
    assert pipeline.clock.now_s() - summary.t_s < 4
    assert summary.processed == 60
    (error,) = keep.of("error")
    assert error.code == "sink"
    assert "cannot be reached" in error.message
    assert "s3same" not in error.message + error.hint


def test_prefixes():
    assert MqttSink("mqtt://h")._prefix == "edgemm"
    assert MqttSink("mqtt://h/robot/eyes/")._prefix == "robot/eyes"
    with pytest.raises(UsageError, match="prefix"):
        MqttSink("mqtt://h/robot/+")


def test_of_stats_only_the_newest_waits():
    queue = SinkQueue(SinkLimits(events=3, latest=frozenset({"stats"})))
    stats = [RunStats().stats(float(n), {}, {}) for n in range(5)]
    for n in range(5):
        queue.put(stats[n])
        queue.put(status(n))
    queue.close()
    got = []
    while (item := queue.get()) is not None:
        got.append(item)
    assert [item.id for item in got if isinstance(item, StatusEvent)] == [3, 4]
    assert [item for item in got if isinstance(item, StatsEvent)] == [stats[4]]
    assert queue.dropped == 3


@needs_broker
def test_nothing_leaks(broker):
    def once():
        sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}/robot")
        sink.open(context())
        sink.handle(status(0))
        sink.close()

    once()
    threads, files = threading.active_count(), open_files()
    for _ in range(30):
        once()
    assert (threading.active_count(), open_files()) == (threads, files)
