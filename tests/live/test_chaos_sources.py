"""Faults of one source, each with its bound (docs/CHAOS.md is the list of all)."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgemm.live.audio_capture import BLOCK_S, AudioCapture
from edgemm.live.capture import Patience, VideoCapture, open_video
from edgemm.live.pacing import Pacer
from edgemm.live.sources.base import Picture, Sound, SourceKind, TransientSourceError
from edgemm.live.sources.container import TimeLine
from edgemm.live.sources.registry import find_kind
from edgemm.live.sources.testing import read_clock
from tests.live.live_fakes import open_files
from tests.rig import rtsp_camera
from tests.rig.clip import write_clip
from tests.rig.mjpeg_camera import MjpegCamera
from tests.rig.rtsp_camera import RtspCamera
from tests.rig.watching import Taker, Watch, balanced, wait_until

RECONNECTS = 10_000
MOST_MB = 5.0


@pytest.fixture
def mjpeg() -> Iterator[MjpegCamera]:
    with MjpegCamera() as camera:
        yield camera


def _open(url: str, watch: Watch, **choices: object) -> VideoCapture:
    return open_video(
        url,
        name="camera",
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        **choices,  # type: ignore[arg-type]
    )


def _readers() -> int:
    return sum(thread.name.startswith("edgemm-read-") for thread in threading.enumerate())


def test_slow_drip(mjpeg: MjpegCamera) -> None:
    """Bytes come, pictures do not: it counts as silence, and its openings do not pile up."""
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    most = 0
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        mjpeg.dripping.set()
        watch.wait_for("stalled")
        watch.wait_for("lost")
        ends_s = time.monotonic() + 2.0
        while time.monotonic() < ends_s:
            most = max(most, _readers())
            time.sleep(0.05)
        mjpeg.dripping.clear()
        watch.wait_for("reconnected")
    assert most <= 3
    assert balanced(capture.ledger.counts())


def test_noise(mjpeg: MjpegCamera) -> None:
    """Random bytes instead of a stream: no picture is made of them, and the stream is found again."""
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        mjpeg.noise = True
        wait_until(lambda: watch.states()[-1] in ("stalled", "lost"))
        before = len(taker.frames)
        time.sleep(0.5)
        assert len(taker.frames) <= before + 1
        mjpeg.noise = False
        wait_until(lambda: len(taker.frames) > before + 10)
        assert all(frame.image.shape == (480, 640, 3) for frame in taker.frames)
    assert capture.error is None
    assert balanced(capture.ledger.counts())


def test_another_frame_rate(mjpeg: MjpegCamera) -> None:
    """From 30 to 4 pictures a second and back, without a stall."""
    watch = Watch()
    with Taker(_open(mjpeg.url, watch)) as taker:
        for fps in (30.0, 4.0, 30.0):
            mjpeg.fps, before = fps, len(taker.frames)
            wait_until(lambda before=before: len(taker.frames) > before + 6)  # type: ignore[misc]
    assert watch.states() == ["opening", "live", "ended"]


class _Slow:
    """Gives one picture at once and then one every `interval_s`, which can change."""

    interval_s = 0.02

    def __init__(self) -> None:
        self._first = True

    def open(self) -> None: ...

    def read(self) -> Picture:
        if not self._first:
            time.sleep(self.interval_s)
        self._first = False
        return np.zeros((2, 2, 3), np.uint8), None

    def close(self) -> None: ...


def test_a_camera_that_becomes_slower_than_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reopened a few times until its rate is known, and not for ever."""
    monkeypatch.setattr(_Slow, "interval_s", 0.02)
    watch, opened = Watch(), []

    def video(spec: str, wish: object) -> _Slow:
        opened.append(time.monotonic())
        return _Slow()

    capture = VideoCapture(
        "slow",
        name="camera",
        kind=SourceKind("slow", "slow", lambda spec: True, live=True, video=video),
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        patience=Patience(stall_min_s=0.2, lost_after_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05),
    )
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 20)
        monkeypatch.setattr(_Slow, "interval_s", 0.6)
        wait_until(lambda: bool(opened) and time.monotonic() - opened[-1] > 2.0, 30)
        assert len(opened) <= 10
        before = len(taker.frames)
        wait_until(lambda: len(taker.frames) > before + 1)


def test_time_stamps_jump_back(tmp_path: Path) -> None:
    """Two films in one file, each from 0: the second plays after the first, at its own pace."""
    whole = tmp_path / "whole.ts"
    with whole.open("wb") as out:
        for name, frames in (("a.ts", 60), ("b.ts", 30)):
            out.write(write_clip(tmp_path / name, frames=frames, b_frames=0).read_bytes())
    watch = Watch()
    capture = _open(str(whole), watch, as_fast_as_possible=True)
    with Taker(capture) as taker:
        taker.join()
    assert [read_clock(frame.image) for frame in taker.frames] == [*range(60), *range(30)]
    times_s = [frame.t_media_s for frame in taker.frames if frame.t_media_s is not None]
    assert np.diff(times_s) == pytest.approx(1 / 30, abs=2e-3)
    pacer = Pacer(0.5)
    assert sum(map(pacer.due, times_s)) == 6


def test_a_time_line_goes_on_after_a_jump() -> None:
    line = TimeLine()
    placed = [line.place(t_s, 0.1) for t_s in (0.0, 0.1, 0.2, 0.05, 0.3, None, 5.0, 0.0, 0.1)]
    assert placed == pytest.approx([0.0, 0.1, 0.2, 0.05, 0.3, 0.4, 5.0, 5.1, 5.2])
    uneven = TimeLine()  # pictures come sooner than their mean length says
    assert [uneven.place(t_s, 10.0) for t_s in (-3.0, 0.0, 1.0, 30.0, 31.0)] == [-3.0, 0.0, 1.0, 30.0, 31.0]


def test_a_pacer_whose_time_goes_back() -> None:
    pacer = Pacer(0.5)
    assert [t for t in (9.0, 9.2, 9.5, 1.0, 1.2, 1.5) if pacer.due(t)] == [9.0, 9.5, 1.0, 1.5]


@pytest.mark.skipif(rtsp_camera.missing() is not None, reason=str(rtsp_camera.missing()))
def test_another_codec() -> None:
    """A camera that comes back with JPEG instead of H.264."""
    with RtspCamera() as camera:
        watch = Watch()
        capture = _open(camera.url, watch)
        with Taker(capture) as taker:
            wait_until(lambda: len(taker.frames) > 10)
            camera.unplug()
            watch.wait_for("lost")
            camera.codec = "jpeg"
            camera.plug()
            before = len(taker.frames)
            watch.wait_for("reconnected")
            wait_until(lambda: len(taker.frames) > before + 10)
        assert taker.frames[-1].image.shape == (480, 640, 3)
        assert taker.frames[-1].image.max() > 200


class _Microphone:
    """Half a second of a tone at one rate, then it is gone."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz, self._n, self._began_s = rate_hz, 0, 0.0

    def open(self) -> None:
        self._began_s = time.monotonic()

    def read(self) -> Sound:
        if self._n == 25:
            raise TransientSourceError("unplugged")
        time.sleep(0.02)
        start_s = self._n * 0.02
        t_s = start_s + np.arange(self._rate_hz // 50) / self._rate_hz
        self._n += 1
        tone = np.sin(2 * np.pi * 400 * t_s).astype(np.float32)
        return Sound(tone, self._rate_hz, t_monotonic_s=self._began_s + start_s)

    def close(self) -> None: ...


def test_a_microphone_with_another_rate() -> None:
    """48 kHz, then 16 kHz, then 44.1 kHz: the same tone, a gap between, no time lost or made up."""
    rates_hz, watch = [48_000, 16_000, 44_100], Watch()
    capture = AudioCapture(
        "fake",
        name="mic",
        kind=SourceKind("fake", "fake", lambda spec: True, live=True, audio=lambda spec: _Microphone(rates_hz.pop(0))),
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        patience=Patience(backoff_min_s=0.05, backoff_max_s=0.05),
    )
    capture.start()
    blocks = []
    while rates_hz or len(blocks) < 36:
        block = capture.read(5.0)
        assert block is not None
        blocks.append(block)
    capture.stop()
    for one, next_one in itertools.pairwise(blocks):
        apart_s = next_one.t_start_s - one.t_start_s - BLOCK_S
        assert apart_s == pytest.approx(next_one.gap_s, abs=0.01)
    assert sum(block.gap_s > 0 for block in blocks) == 2
    for block in blocks[2:14]:
        spectrum = np.abs(np.fft.rfft(block.samples))
        assert abs(int(spectrum.argmax()) * 16_000 / 512 - 400) < 32


@pytest.mark.slow
def test_ten_thousand_reconnects() -> None:
    """A refused port, asked without a pause: nothing grows, and it is still found when it is there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/video.mjpg"
    kind, opened = find_kind(url, video=True), [0]

    def video(spec: str, wish: object) -> object:
        opened[0] += 1
        assert kind.video is not None
        return kind.video(spec, wish)  # type: ignore[arg-type]

    watch = Watch()
    capture = VideoCapture(
        url,
        name="camera",
        kind=SourceKind("network", "network", lambda spec: True, live=True, video=video),  # type: ignore[arg-type]
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        patience=Patience(never_opened_s=1e9, backoff_min_s=0.0, backoff_max_s=0.0),
    )
    rss_mb = _rss_mb()
    with Taker(capture) as taker:
        wait_until(lambda: opened[0] >= RECONNECTS // 10, 300)
        warm_mb, files, threads = rss_mb(), open_files(), threading.active_count()
        wait_until(lambda: opened[0] >= RECONNECTS, 900)
        assert rss_mb() - warm_mb < MOST_MB
        assert abs(open_files() - files) <= 4
        assert abs(threading.active_count() - threads) <= 2
        with MjpegCamera(port=port):
            wait_until(lambda: len(taker.frames) > 10)
    assert watch.states() == ["opening", "live", "ended"]


def _rss_mb() -> Callable[[], float]:
    process = psutil.Process(os.getpid())
    return lambda: process.memory_info().rss / 1e6
