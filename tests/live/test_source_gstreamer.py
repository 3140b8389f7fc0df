"""Pictures of a GStreamer child: NVIDIA's elements are replaced by the ones that every machine has."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.live.capture import VideoCapture, open_video
from edgemm.live.sources import child
from edgemm.live.sources.base import SourceKind, TransientSourceError, Wish
from edgemm.live.sources.gstreamer import GstReader, csi_pipeline, csi_video
from tests.live.live_fakes import open_files
from tests.rig.watching import Taker, Watch, balanced, wait_until

SIZE_PX = (64, 48)
needs_gst = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is not installed (apt-get install gstreamer1.0-tools)",
)


def _pattern(options: str = "", fps: float = 30.0) -> str:
    """The pipeline of a CSI camera with the sensor and the chip's scaler replaced."""
    pipeline = csi_pipeline(0, SIZE_PX, fps).replace("(memory:NVMM)", "")
    pipeline = pipeline.replace("nvarguscamerasrc sensor-id=0", f"videotestsrc is-live=true {options}")
    return pipeline.replace("nvvidconv", "videoconvert ! videoscale")


@pytest.fixture
def camera() -> Iterator[Callable[[str], tuple[VideoCapture, Watch, list[GstReader]]]]:
    readers: list[GstReader] = []

    def make(pipeline: str) -> tuple[VideoCapture, Watch, list[GstReader]]:
        def video(spec: str, wish: Wish) -> GstReader:
            readers.append(GstReader(spec, pipeline, SIZE_PX))
            return readers[-1]

        watch = Watch()
        kind = SourceKind("csi", "csi", lambda spec: True, live=True, video=video)
        capture = VideoCapture(
            "csi://0", name="camera", kind=kind, clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status
        )
        return capture, watch, readers

    yield make
    for reader in readers:
        wait_until(lambda reader=reader: reader._process is None)  # type: ignore[misc]


def _child(reader: GstReader) -> int:
    assert reader._process is not None
    return reader._process.pid


@needs_gst
def test_colours_and_rate() -> None:
    reader = GstReader("csi://0", _pattern("pattern=solid-color foreground-color=0xffc81e0a", fps=20.0), SIZE_PX)
    reader.open()
    try:
        pictures = [reader.read() for _ in range(20)]
        began = time.monotonic()
        pictures += [reader.read() for _ in range(20)]
        assert time.monotonic() - began > 0.7
    finally:
        reader.close()
    for picture in pictures:
        assert picture is not None
        assert picture[0].shape == (48, 64, 3)
        assert np.abs(picture[0].reshape(-1, 3).mean(axis=0) - (200, 30, 10)).max() < 3


@needs_gst
def test_a_frozen_child_is_killed_and_another_started(camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "READ_TIMEOUT_S", 1.0)
    capture, watch, readers = camera(_pattern())
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        frozen = _child(readers[0])
        os.kill(frozen, signal.SIGSTOP)
        watch.wait_for("stalled")
        watch.wait_for("reconnected")
        wait_until(lambda: not os.path.exists(f"/proc/{frozen}"))
    assert len(readers) >= 2
    assert balanced(capture.ledger.counts())


@needs_gst
def test_a_child_that_dies_is_replaced(camera) -> None:
    capture, watch, readers = camera(_pattern())
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        os.kill(_child(readers[0]), signal.SIGKILL)
        watch.wait_for("reconnected")
    assert watch.states() == ["opening", "live", "lost", "reconnected", "ended"]


@needs_gst
def test_nothing_is_left() -> None:
    before, threads = open_files(), threading.active_count()
    for _ in range(3):
        reader = GstReader("csi://0", _pattern(), SIZE_PX)
        reader.open()
        reader.read()
        pid = _child(reader)
        reader.close()
        assert not os.path.exists(f"/proc/{pid}")
    assert (open_files(), threading.active_count()) == (before, threads)


@needs_gst
def test_no_jetson_is_said() -> None:
    watch = Watch()
    capture = open_video("csi://0", name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    capture.start()
    wait_until(lambda: capture.ended)
    assert 'no element "nvarguscamerasrc"' in str(capture.error)
    assert "Jetson" in str(capture.error)


@needs_gst
def test_a_camera_that_ends_may_come_back() -> None:
    reader = GstReader("csi://0", _pattern("num-buffers=2"), SIZE_PX)
    reader.open()
    try:
        assert reader.read() is not None
        assert reader.read() is not None
        with pytest.raises(TransientSourceError, match="ended"):
            reader.read()
    finally:
        reader.close()


def test_without_gstreamer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    reader = csi_video("csi://1", Wish())
    with pytest.raises(SourceError, match=r"apt install gstreamer1\.0-tools"):
        reader.open()
    reader.close()


def test_what_is_asked_of_the_chip() -> None:
    pipeline = csi_pipeline(1, (1920, 1080), 29.97)
    assert "sensor-id=1" in pipeline
    assert "framerate=2997/100" in pipeline or "framerate=30000/1001" in pipeline
    assert "width=1920,height=1080" in pipeline
    with pytest.raises(SourceError, match="csi://0"):
        csi_video("csi://front", Wish())
