"""Which frames the vision worker looks at."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.live.frames import Frame
from edgemm.live.pacing import Freshness, Pacer, Window

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(number, t_s):
    return Frame(number, "camera", IMAGE, t_s)


def test_pacer_keeps_its_beat():
    pacer = Pacer(0.5)
    looked = [n for n in range(90) if pacer.due(n / 30)]
    assert looked == [0, 15, 30, 45, 60, 75]


def test_pacer_does_not_catch_up_after_a_pause():
    pacer = Pacer(0.5)
    assert [t for t in (0.0, 3.1, 3.2, 3.4, 3.5, 3.6) if pacer.due(t)] == [0.0, 3.1, 3.5]


def test_a_window_whose_time_goes_back_begins_anew():
    window = Window(4, 2.0)
    for number, t_s in enumerate((10.0, 10.5, 11.0, 1.0, 1.5)):
        assert window.due(t_s)
        window.add(frame(number, t_s), t_s)
    assert [t_s for _, t_s in window.shown] == [1.0, 1.5]


def test_a_frame_that_waited_for_most_of_its_interval_is_stale():
    fresh = Freshness()
    assert not fresh.stale(frame(0, 0.0), 0.030)  # nothing is known of the camera yet
    assert not fresh.stale(frame(1, 0.033), 0.045)
    assert fresh.stale(frame(3, 0.100), 0.125)
    assert not fresh.stale(frame(4, 0.133), 0.160)  # never two in a row


@pytest.mark.parametrize("interval_s", [0.1, 1.0])
def test_frames_of_slow_cameras_are_never_stale(interval_s):
    fresh = Freshness()
    for n in range(5):
        assert not fresh.stale(frame(n, n * interval_s), n * interval_s + 0.9 * interval_s)
