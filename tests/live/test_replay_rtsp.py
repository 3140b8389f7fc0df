"""A run on a real RTSP camera that was lost and came back, replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemm.live.foxglove import VIDEO
from edgemm.live.mcap_file import read_messages
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.recording import McapSink
from tests.live.live_fakes import KeepSink, until
from tests.live.test_replay import Exact, results, run
from tests.rig.rtsp_camera import RtspCamera
from tests.rig.rtsp_camera import missing as rtsp_missing


@pytest.mark.skipif(rtsp_missing() is not None, reason=str(rtsp_missing()))
def test_an_rtsp_camera_that_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    model = Exact(work_s=0.06, tasks=("classify",))
    keep = KeepSink()
    with RtspCamera(size="320x240") as camera:
        pipeline = Pipeline(model, StreamOptions(cameras=(camera.url,), mic=camera.url), [keep, McapSink(path)])
        pipeline.start()
        until(lambda: len(keep.of("labels")) >= 10, 60)
        camera.unplug()
        until(lambda: any(e.state == "lost" and e.source == "camera" for e in keep.of("status")), 60)
        camera.plug()
        seen = len(keep.of("labels"))
        until(lambda: len(keep.of("labels")) >= seen + 10, 60)
        pipeline.finish()
        summary = pipeline.wait()
    parts = {m.body["part"] for m in read_messages(path, (VIDEO,))}
    assert len(parts) >= 2
    again = run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True)
    assert results(again[0]) == results(keep)
    assert again[1].processed == summary.processed
    assert again[1].audio_s == pytest.approx(summary.audio_s)
    assert again[1].audio_gaps == summary.audio_gaps
