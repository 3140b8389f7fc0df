"""A model slower than a real RTSP camera sees pictures hardly older than they come, by the sender's clock."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edgemm.live.sources.testing import age_s
from edgemm.live.stream import stream
from tests.live.live_fakes import FakeModel
from tests.rig import rtsp_camera
from tests.rig.draining import drain

FRAME_MS = 1000 / 30
# A picture waits for 0.4 of an interval at most, and CI machines are busy.
LENIENT_MS = FRAME_MS + 10.0


class Slow(FakeModel):
    """Takes three frames' time, and notes how old each picture is when it begins."""

    tasks = ("classify",)

    def __init__(self):
        super().__init__(work_s=0.1)
        self.ages = []

    def classify(self, image, *, top=5):
        now_s = time.monotonic()
        self.ages.append((now_s, 1e3 * age_s(image, now_s)))
        return super().classify(image, top=top)


@pytest.mark.skipif(rtsp_camera.missing() is not None, reason=str(rtsp_camera.missing()))
def test_the_age_at_the_beginning_of_a_slow_model_stays_that_of_a_bare_reader():
    model, drained, stop = Slow(), [], threading.Event()
    with rtsp_camera.RtspCamera(clock=True) as camera:
        reader = threading.Thread(target=lambda: drained.extend(drain(camera.url, 30.0, stop)))
        reader.start()
        with stream(model, camera=camera.url, mic="none", duration_s=8.0) as live:
            summary = live.wait()
        stop.set()
        reader.join(10)
    begun_s = model.ages[0][0] + 2.0
    ours, bare = (np.array([ms for t_s, ms in ages if t_s >= begun_s]) for ages in (model.ages, drained))
    assert len(ours) >= 30
    assert summary.captured == summary.processed + sum(summary.dropped.values()) + summary.in_flight
    print(f"age p50 {np.median(ours):.1f} ms, a bare reader's {np.median(bare):.1f}")
    assert np.median(ours) - np.median(bare) <= LENIENT_MS
    assert np.median(ours[-10:]) - np.median(ours[:10]) <= 2 * FRAME_MS
