"""Several cameras on one model, in simulated time: none waits for a frozen one, and all get their share."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.events import LabelsEvent
from edgemm.live.frames import Frame
from edgemm.live.ledger import Ledger
from edgemm.live.options import StreamOptions
from edgemm.live.sinks.base import SinkLimits, SinkQueue
from edgemm.live.stats import RunStats
from edgemm.live.vision import VisionWorker
from edgemm.results import Label, Labels
from tests.live.live_fakes import FakeModel
from tests.rig.watching import balanced

IMAGE = np.zeros((2, 2, 3), np.uint8)
END_S = 20.0
FROZEN_FROM_S = 10.0
MOST_EXTRA_S = 0.030
LEAST_SHARE = 0.8


class SimulatedClock(Clock):
    """Goes on only where somebody waits or works."""

    def __init__(self) -> None:
        super().__init__()
        self.t_s = 0.0

    def now_s(self) -> float:
        return self.t_s


class SimulatedStop(threading.Event):
    """Set at the end; waiting for it takes simulated time."""

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def is_set(self) -> bool:
        return self._clock.t_s >= END_S

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.t_s += timeout or 0.0
        return self.is_set()


class SimulatedCamera:
    """The newest frame of a steady camera, until it freezes. Waiting in vain costs what it costs."""

    def __init__(self, number: int, fps: float, clock: SimulatedClock, frozen_from_s: float = END_S) -> None:
        self.name, self.ledger, self.ended = f"camera.{number}", Ledger(), False
        self._period_s, self._phase_s = 1 / fps, number * 0.007
        self._clock, self._frozen_from_s, self._next = clock, frozen_from_s, 0

    def take(self, timeout_s: float) -> Frame | None:
        now_s = min(self._clock.t_s, self._frozen_from_s)
        newest = int((now_s - self._phase_s) / self._period_s) if now_s >= self._phase_s else -1
        if newest < self._next:
            self._clock.t_s += timeout_s
            return None
        self.ledger.lost("superseded", newest - self._next)
        self.ledger.captured()
        self._next = newest + 1
        return Frame(newest, self.name, IMAGE, self._phase_s + newest * self._period_s)


class SimulatedModel(FakeModel):
    """Each picture takes its time, some a little more: in step with a camera, ages would not be what they are."""

    def __init__(self, clock: SimulatedClock, work_s: float) -> None:
        super().__init__(work_s=work_s)
        self._clock, self._choose = clock, random.Random(1)

    def classify(self, image: np.ndarray, *, top: int = 5) -> Labels:
        took_s = self.work_s * self._choose.uniform(0.9, 1.1)
        self._clock.t_s += took_s
        return Labels((Label("thing", 1.0),), 1e3 * took_s)


def _run(rates_hz: Sequence[float], work_s: float, frozen: int | None = None) -> tuple[list[LabelsEvent], list[Ledger]]:
    """The results of `END_S` seconds and the books; camera number `frozen` freezes half way."""
    clock = SimulatedClock()
    cameras = [
        SimulatedCamera(number, fps, clock, FROZEN_FROM_S if number == frozen else END_S)
        for number, fps in enumerate(rates_hz)
    ]
    stats, queue = RunStats(), SinkQueue(SinkLimits(events=100_000))
    emitter = Emitter(clock, stats)
    emitter.attach("all", queue)
    VisionWorker(
        SimulatedModel(clock, work_s),
        cameras,
        ("classify",),
        StreamOptions(cameras=tuple("test://" for _ in cameras)),
        clock=clock,
        emitter=emitter,
        stats=stats,
        stop=SimulatedStop(clock),
        on_enough=lambda: None,
    ).run()
    events = []
    while (item := queue.get(0.0)) is not None:
        assert isinstance(item, LabelsEvent)
        events.append(item)
    return events, [camera.ledger for camera in cameras]


@pytest.mark.parametrize("work_s", [0.004, 0.02, 0.15])
@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_a_frozen_camera_costs_the_others_nothing(work_s: float, frozen: int) -> None:
    events, books = _run([30.0, 30.0, 15.0, 30.0], work_s, frozen)
    for number in {0, 1, 2, 3} - {frozen}:
        mine = [event for event in events if event.source == f"camera.{number}"]
        before = [event.latency_ms for event in mine if event.t_s < FROZEN_FROM_S]
        after = [event.latency_ms for event in mine if event.t_s >= FROZEN_FROM_S + 0.5]
        assert len(before) > 10
        assert np.percentile(after, 95) <= np.percentile(before, 95) + 1e3 * MOST_EXTRA_S
        assert len(after) >= 0.9 * len(before)
    assert all(balanced(ledger.counts()) for ledger in books)
    assert not [e for e in events if e.source == f"camera.{frozen}" and e.t_s > FROZEN_FROM_S + 1.0]


@pytest.mark.parametrize("work_s", [0.002, 0.02, 0.06, 0.2])
@pytest.mark.parametrize("rates_hz", [[30.0] * 4, [30.0, 30.0, 10.0, 5.0], [60.0, 1.0]])
def test_every_camera_gets_its_share(work_s: float, rates_hz: list[float]) -> None:
    _, books = _run(rates_hz, work_s)
    share_hz = 1 / work_s / len(rates_hz)
    for rate_hz, ledger in zip(rates_hz, books, strict=True):
        assert ledger.counts().processed / END_S >= LEAST_SHARE * min(rate_hz, share_hz)
