"""Network cameras that really freeze, drop, lie and come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.live.audio_capture import open_audio
from edgemm.live.capture import Patience, VideoCapture, open_video
from edgemm.live.sources.registry import find_kind
from edgemm.live.sources.testing import age_s
from tests.rig import rtsp_camera
from tests.rig.mjpeg_camera import MjpegCamera
from tests.rig.rtsp_camera import RtspCamera
from tests.rig.watching import Taker, Watch, balanced, wait_until

STALL_NOTICED_S = 1.0
BACK_AFTER_S = 1.0
RTSP_BACK_AFTER_S = 1.5
TOLERANCE_S = 0.25

_rtsp_missing = cache(rtsp_camera.missing)


@pytest.fixture
def rtsp() -> Iterator[RtspCamera]:
    reason = _rtsp_missing()
    if reason is not None:
        pytest.skip(reason)
    with RtspCamera() as camera:
        yield camera


@pytest.fixture
def mjpeg() -> Iterator[MjpegCamera]:
    with MjpegCamera() as camera:
        yield camera


def _open(url: str, watch: Watch) -> VideoCapture:
    return open_video(url, name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)


def _last_frame_s(taker: Taker) -> float:
    return taker.frames[-1].t_capture_s


def test_mjpeg_frames_are_fresh(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    with Taker(_open(mjpeg.url, watch)) as taker:
        wait_until(lambda: len(taker.frames) >= 60)
    ages = [age_s(f.image, t) for f, t in zip(taker.frames, taker.taken_s, strict=True)]
    assert min(ages) > -0.002
    assert np.percentile(ages, 50) < 0.015
    assert np.percentile(ages, 95) < 0.04


def test_mjpeg_stays_fresh_with_a_slow_taker(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture, work_s=0.15) as taker:
        wait_until(lambda: len(taker.frames) >= 20)
    ages = [age_s(f.image, t) for f, t in zip(taker.frames, taker.taken_s, strict=True)]
    assert np.percentile(ages, 90) < 1 / 30 + 0.03
    assert capture.ledger.counts().dropped["superseded"] > 40


def test_mjpeg_frozen_then_back(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    with Taker(_open(mjpeg.url, watch)) as taker:
        wait_until(lambda: len(taker.frames) > 20)
        mjpeg.frozen.set()
        stalled_s = watch.wait_for("stalled")
        assert stalled_s - _last_frame_s(taker) <= STALL_NOTICED_S + TOLERANCE_S
        watch.wait_for("lost")
        before, back_s = len(taker.frames), watch.clock.now_s()
        mjpeg.frozen.clear()
        watch.wait_for("reconnected")
        wait_until(lambda: len(taker.frames) > before)
        assert taker.frames[before].t_capture_s - back_s <= BACK_AFTER_S + TOLERANCE_S
        assert age_s(taker.frames[before].image, taker.taken_s[before]) < 0.2


def test_mjpeg_a_short_pause_is_no_loss(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 20)
        mjpeg.frozen.set()
        watch.wait_for("stalled")
        mjpeg.frozen.clear()
        watch.wait_for("live", after_s=watch.statuses[-1][0])
    assert watch.states() == ["opening", "live", "stalled", "live", "ended"]
    assert capture.ledger.counts().reconnects == 0


def test_mjpeg_unplugged_then_plugged(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 20)
        mjpeg.unplug()
        gone_s = watch.clock.now_s()
        assert watch.wait_for("lost") - gone_s <= STALL_NOTICED_S
        time.sleep(1.0)
        before, back_s = len(taker.frames), watch.clock.now_s()
        mjpeg.plug()
        watch.wait_for("reconnected")
        wait_until(lambda: len(taker.frames) > before)
        assert taker.frames[before].t_capture_s - back_s <= BACK_AFTER_S
    counts = capture.ledger.counts()
    assert counts.reconnects == 1
    assert balanced(counts)


def test_mjpeg_garbage_and_another_size(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        mjpeg.garbage = True
        wait_until(lambda: capture.ledger.counts().dropped.get("decode_error", 0) > 3)
        mjpeg.garbage = False
        mjpeg.size_px = (320, 240)
        wait_until(lambda: taker.frames[-1].image.shape == (240, 320, 3))
    assert watch.states() == ["opening", "live", "ended"]
    assert balanced(capture.ledger.counts())


@pytest.mark.parametrize(("status", "says"), [(401, "refuses"), (404, "refuses")])
def test_mjpeg_refused(mjpeg: MjpegCamera, status: int, says: str) -> None:
    mjpeg.status = status
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    capture.start()
    wait_until(lambda: capture.ended)
    capture.stop()
    assert isinstance(capture.error, SourceError)
    assert says in str(capture.error)
    assert "secret" not in str(capture.error) + str(watch.statuses) + capture.spec


def test_refused_again_after_it_was_live_is_retried(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 5)
        mjpeg.status = 404
        mjpeg.drop()
        watch.wait_for("lost")
        time.sleep(0.5)
        mjpeg.status = 200
        watch.wait_for("reconnected")
        assert capture.error is None


def test_no_camera_at_the_address() -> None:
    with MjpegCamera() as camera:
        url = camera.url
    watch = Watch()
    capture = VideoCapture(
        url,
        name="camera",
        kind=find_kind(url, video=True),
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        patience=Patience(never_opened_s=1.0),
    )
    capture.start()
    wait_until(lambda: capture.ended, 6)
    assert isinstance(capture.error, SourceError)
    assert "cannot be read" in str(capture.error)
    assert "secret" not in str(capture.error)
    assert watch.states() == ["opening", "ended"]


def test_nothing_is_left_after_many_reconnects(mjpeg: MjpegCamera) -> None:
    watch = Watch()
    capture = _open(mjpeg.url, watch)
    with Taker(capture) as taker:
        for lost in range(1, 4):
            seen = len(taker.frames)
            wait_until(lambda seen=seen: len(taker.frames) > seen + 3)  # type: ignore[misc]
            mjpeg.drop()
            wait_until(lambda lost=lost: capture.ledger.counts().reconnects == lost)  # type: ignore[misc]
        readers = [t for t in threading.enumerate() if t.name.startswith("edgemm-read-camera")]
        assert len(readers) == 1
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgemm-")], 2)


def test_rtsp_frozen_then_back(rtsp: RtspCamera) -> None:
    watch = Watch()
    capture = _open(rtsp.url, watch)
    with Taker(capture) as taker:
        assert watch.wait_for("live") < 1.5
        wait_until(lambda: len(taker.frames) > 30)
        assert taker.frames[-1].image.shape == (480, 640, 3)
        rtsp.freeze()
        stalled_s = watch.wait_for("stalled")
        assert stalled_s - _last_frame_s(taker) <= STALL_NOTICED_S + TOLERANCE_S
        watch.wait_for("lost")
        time.sleep(1.0)
        before, back_s = len(taker.frames), watch.clock.now_s()
        rtsp.thaw()
        watch.wait_for("reconnected")
        wait_until(lambda: len(taker.frames) > before)
        assert taker.frames[before].t_capture_s - back_s <= RTSP_BACK_AFTER_S + TOLERANCE_S
        wait_until(lambda: len(taker.frames) > before + 20)
    assert balanced(capture.ledger.counts())


def test_rtsp_killed_then_restarted(rtsp: RtspCamera) -> None:
    watch = Watch()
    capture = _open(rtsp.url, watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 10)
        rtsp.unplug()
        gone_s = watch.clock.now_s()
        assert watch.wait_for("lost") - gone_s <= STALL_NOTICED_S
        time.sleep(1.5)
        before = len(taker.frames)
        rtsp.plug()
        back_s = watch.clock.now_s()
        watch.wait_for("reconnected")
        wait_until(lambda: len(taker.frames) > before)
        assert taker.frames[before].t_capture_s - back_s <= RTSP_BACK_AFTER_S + TOLERANCE_S
    assert capture.ledger.counts().reconnects == 1


def test_stop_with_a_frozen_camera(rtsp: RtspCamera) -> None:
    capture = _open(rtsp.url, Watch())
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 5)
        rtsp.freeze()
        time.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0


def test_sound_of_an_rtsp_camera(rtsp: RtspCamera) -> None:
    watch = Watch()
    sound = open_audio(rtsp.url, name="mic", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    sound.start()
    wait_until(lambda: sound.read(0.1) is not None)
    blocks = [block for block in (sound.read(0.5) for _ in range(40)) if block is not None]
    sound.stop()
    assert len(blocks) == 40
    assert max(float(np.abs(block.samples).max()) for block in blocks) > 0.1
    steps = np.diff([block.t_start_s for block in blocks])
    assert np.abs(steps - 0.032).max() < 0.01
