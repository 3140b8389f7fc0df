"""The Rerun sink: what a viewer gets, read back from a file and from a server that runs, and what it refuses."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from edgemm.errors import SinkError
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.rerun_viewer import RerunSink
from tests.live.live_fakes import FakeModel, Seeing, until
from tests.live.web_clients import CONTEXT
from tests.rig.network import free_port

pytest.importorskip("rerun", reason="the extra rerun is not installed")
RERUN = shutil.which("rerun", path=str(Path(sys.executable).parent))


def rows(path):
    """How many rows a recording has of each entity, by rerun's own program."""
    told = subprocess.run([RERUN, "rrd", "print", "-v", path], check=True, capture_output=True, text=True, timeout=60)
    counts = Counter()
    for count, entity in re.findall(r"with (\d+) rows .*? - (/[^ ]+) - data", told.stdout):
        counts[entity] += int(count)
    return counts


def played(url, model=None):
    """The summary of a second of the test pattern."""
    options = StreamOptions(cameras=("test://?size=160x120&fps=40",), duration_s=1.0, ask=("what is it?",))
    return Pipeline(model or Seeing(), options, [url]).run()


def test_a_file_has_every_result_and_ten_pictures_a_second(tmp_path):
    summary = played(f"rerun://{tmp_path}/run.rrd")
    found = rows(tmp_path / "run.rrd")
    subprocess.run([RERUN, "rrd", "verify", tmp_path / "run.rrd"], check=True, capture_output=True, timeout=60)
    assert summary.processed > 5
    for entity in ("/said/labels", "/said/caption", "/latency_ms/labels", "/camera/picture/objects"):
        assert summary.processed - 1 <= found[entity] <= summary.processed, entity
    assert found["/said/answer"] == 1
    assert 1 <= found["/camera/picture"] <= 12


def test_a_viewer_that_runs_gets_the_same(tmp_path):
    port = free_port()
    viewer = subprocess.Popen(
        [RERUN, "--port", str(port), "--save", tmp_path / "kept.rrd"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        until(lambda: _open(port), 30)
        summary = played(f"rerun://127.0.0.1:{port}", FakeModel())
        until(lambda: rows(tmp_path / "kept.rrd")["/said/answer"] == 1, 10)
    finally:
        viewer.send_signal(signal.SIGINT)
        viewer.communicate(timeout=30)
    assert summary.processed - 1 <= rows(tmp_path / "kept.rrd")["/said/labels"] <= summary.processed


def test_what_cannot_be_opened_is_told():
    for url in (f"rerun://127.0.0.1:{free_port()}", "rerun:///no/such/folder/run.rrd"):
        with pytest.raises(SinkError, match="cannot be opened"):
            RerunSink(url).open(CONTEXT)


def _open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
