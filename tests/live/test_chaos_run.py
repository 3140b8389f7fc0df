"""Faults of a whole run, each with its bound (docs/CHAOS.md is the list of all)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgemm.live import vision
from edgemm.live.events import StatusEvent
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from tests.live.live_fakes import FakeModel, KeepSink, until
from tests.rig.mjpeg_camera import MjpegCamera
from tests.rig.watching import balanced

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 86_400.0

# A model that never comes back from native code, in a process of its own: no thread can be ended from outside.
HUNG = """
import ctypes, json, sys
from edgemm.live import pipeline
from edgemm.live.options import StreamOptions
from tests.live.live_fakes import FakeModel

class Hung(FakeModel):
    def classify(self, image, *, top=5):
        print("hangs", flush=True)
        ctypes.CDLL(None).sleep(1000)

pipeline.DRAIN_S = 1.0
duration_s = float(sys.argv[1]) or None
options = StreamOptions(cameras=("test://?size=64x48",), tasks=("classify",), duration_s=duration_s)
try:
    summary = pipeline.Pipeline(Hung(), options).run()
except KeyboardInterrupt:
    sys.exit(130)
print(json.dumps([summary.captured, summary.processed, sum(summary.dropped.values()), summary.in_flight]))
"""


def _hung(duration_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HUNG, str(duration_s)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_hung_model_does_not_outlive_the_duration() -> None:
    with _hung(1.0) as run:
        out, errors = run.communicate(timeout=30)
    assert run.returncode == 0, errors
    captured, processed, dropped, in_flight = json.loads(out.splitlines()[-1])
    assert captured > 5
    assert (processed, in_flight) == (0, 1)
    assert captured == dropped + in_flight


def test_a_hung_model_is_interrupted() -> None:
    with _hung(0.0) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "hangs\n"
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30)
        took_s = time.monotonic() - began
    assert run.returncode == 130
    assert took_s < 5.0


def test_a_stuck_model_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "STUCK_S", 1.0)
    keep, model = KeepSink(), FakeModel()
    pipeline = Pipeline(model, StreamOptions(cameras=("test://?size=64x48",), tasks=("classify",)), [keep])
    pipeline.start()
    until(lambda: len(keep.of("labels")) > 5)
    assert not keep.of("error")
    model.work_s = 2.5
    until(lambda: keep.of("error"))
    time.sleep(0.3)
    model.work_s = 0.0
    before = len(keep.of("labels"))
    until(lambda: len(keep.of("labels")) > before + 5)
    pipeline.stop()
    errors = keep.of("error")
    assert {(event.code, event.source) for event in errors} == {("stuck", "camera")}
    assert len(errors) == 1


def test_one_of_two_cameras_dies_and_comes_back() -> None:
    """The other one goes on all the time; the dead one is taken up again."""
    keep = KeepSink()
    with MjpegCamera(size_px=(320, 240)) as dies:
        options = StreamOptions(cameras=(dies.url, "test://?size=64x48"), tasks=("classify",), stats_every_s=0.2)
        pipeline = Pipeline(FakeModel(), options, [keep])
        pipeline.start()
        until(lambda: {event.source for event in keep.of("labels")} == {"camera.0", "camera.1"})
        dies.unplug()
        until(lambda: _states(keep, "camera.0")[-1:] == ["lost"])
        before = len(keep.of("labels"))
        until(lambda: len([e for e in keep.of("labels")[before:] if e.source == "camera.1"]) > 30)
        assert not pipeline.over
        dies.plug()
        until(lambda: "reconnected" in _states(keep, "camera.0"))
        before = len(keep.of("labels"))
        until(lambda: len([e for e in keep.of("labels")[before:] if e.source == "camera.0"]) > 5)
        pipeline.stop()
    assert _states(keep, "camera.1")[:2] == ["opening", "live"]
    assert "lost" not in _states(keep, "camera.1")
    (summary,) = keep.of("summary")
    assert summary.sources["camera.0"].reconnects == 1
    assert all(balanced(source) for event in keep.of("stats") for source in event.sources.values())


def _states(keep: KeepSink, source: str) -> list[str]:
    return [e.state for e in keep.of("status") if isinstance(e, StatusEvent) and e.source == source]


@pytest.mark.parametrize("step_s", [STEP_S, -STEP_S])
def test_the_wall_clock_is_stepped(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day forward or back in the middle of a run: no stamp moves, nothing stalls."""
    keep, real_time = KeepSink(), time.time
    options = StreamOptions(cameras=("test://?size=64x48",), mic="test://", tasks=("classify",), stats_every_s=0.2)
    pipeline = Pipeline(FakeModel(), options, [keep])
    pipeline.start()
    until(lambda: len(keep.of("labels")) > 10)
    monkeypatch.setattr(time, "time", lambda: real_time() + step_s)
    before = len(keep.of("labels"))
    until(lambda: len(keep.of("labels")) > before + 20)
    pipeline.stop()
    times_s = [event.t_s for event in keep.events]
    assert times_s == sorted(times_s)
    assert times_s[-1] < 60
    assert {event.state for event in keep.of("status")} <= {"opening", "live", "ended"}
    (started,) = keep.of("started")
    assert abs(started.wall_offset_s - real_time()) < 120
    assert all(0 <= event.latency_ms < 10_000 for event in keep.of("labels"))
    assert not keep.of("audio_gap")


def test_the_list_of_faults_names_tests_that_are_there() -> None:
    listed = re.findall(r"`(\w+\.py)::(\w+)` \|$", (ROOT / "docs/CHAOS.md").read_text(), re.MULTILINE)
    assert len(listed) >= 20
    for file, test in listed:
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(), f"{file} has no {test}"
