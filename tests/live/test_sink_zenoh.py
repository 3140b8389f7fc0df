"""The Zenoh sink: two processes on loopback, and what a late peer can ask for."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sinks.zenoh_bus import ZenohSink
from tests.live.live_fakes import HeldModel, open_files
from tests.rig.network import free_port

zenoh = pytest.importorskip("zenoh", reason="the extra sinks is not installed")
CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)

PEER = """
import sys, threading, zenoh
config = zenoh.Config()
config.insert_json5("scouting/multicast/enabled", "false")
config.insert_json5("listen/endpoints", '["tcp/127.0.0.1:0"]')
config.insert_json5("connect/endpoints", f'["tcp/127.0.0.1:{sys.argv[1]}"]')
over = threading.Event()
def heard(sample):
    print(sample.key_expr, sample.payload.to_string(), flush=True)
    if str(sample.key_expr).endswith("/summary"):
        over.set()
with zenoh.open(config) as session:
    subscriber = session.declare_subscriber("Robot/eyes/*", heard)
    for _ in range(100):
        replies = list(session.get("Robot/eyes/started"))
        if replies:
            break
        over.wait(0.1)
    print("ready", replies[0].ok.payload.to_string(), flush=True)
    over.wait(30)
"""


def url(port):
    return f"zenoh://Robot/eyes?listen=tcp/127.0.0.1:{port}&scouting=false"


def test_another_process_gets_the_very_lines_of_json(silent_clip):
    port, out, model = free_port(), io.StringIO(), HeldModel()
    pipeline = Pipeline(model, StreamOptions(cameras=(str(silent_clip),)), [JsonlSink(out), url(port)])
    pipeline.start()
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", PEER, str(port)], cwd=root, stdout=subprocess.PIPE, text=True)
    ready = child.stdout.readline()
    assert json.loads(ready.removeprefix("ready "))["type"] == "started"
    model.go.set()
    pipeline.wait()
    got = child.communicate(timeout=20)[0].splitlines()
    lines = out.getvalue().splitlines()
    assert len(lines) > 20
    assert got == [f"Robot/eyes/{json.loads(line)['type']} {line}" for line in lines if '"started"' not in line]


def test_what_cannot_be_opened():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sink = ZenohSink(url(taken.getsockname()[1]))
        with pytest.raises(SinkError, match="zenoh://Robot/eyes cannot be opened"):
            sink.open(CONTEXT)
        sink.close()
    with pytest.raises(UsageError, match="prefix"):
        ZenohSink("zenoh://robot/*")
    with pytest.raises(UsageError, match="unknown option"):
        ZenohSink("zenoh://robot?fly=1")


def test_nothing_leaks():
    def once():
        sink = ZenohSink(url(port))
        sink.open(CONTEXT)
        sink.handle(StatusEvent(source="camera", state="live"))
        sink.close()

    port = free_port()
    once()
    threads, files = threading.active_count(), open_files()
    for _ in range(30):
        once()
    # A thread of its runtime that called Python is seen until it ends by itself.
    assert threading.active_count() <= threads + 2
    assert open_files() <= files + 2
