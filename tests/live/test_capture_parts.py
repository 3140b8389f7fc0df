"""The parts of a capture: books, slot, epoch, back-off, and a supervisor with readers that hang."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgemm.live.audio_capture import BLOCK_S, BlockCutter
from edgemm.live.capture import Patience, RateLimit, VideoCapture, open_video
from edgemm.live.clock import Clock
from edgemm.live.ledger import Ledger
from edgemm.live.pacing import Epoch
from edgemm.live.slot import Slot
from edgemm.live.sources.base import (
    Picture,
    Sound,
    SourceKind,
    TransientSourceError,
    redact,
)
from edgemm.live.supervisor import Backoff
from tests.rig.watching import Taker, Watch, balanced, wait_until


def test_books_balance_under_threads() -> None:
    ledger, unbalanced = Ledger(), []
    done = threading.Event()

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(3000):
            ledger.captured()
            if choose.random() < 0.5:
                ledger.processed()
            else:
                ledger.drop("gated")
            ledger.lost("decode_error")

    def look() -> None:
        while not done.is_set():
            if not balanced(ledger.counts()):
                unbalanced.append(ledger.counts())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    looker = threading.Thread(target=look)
    for thread in (looker, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    looker.join()
    counts = ledger.counts()
    assert unbalanced == []
    assert (counts.captured, counts.in_flight) == (24_000, 0)


def test_settling_what_is_not_in_flight_is_refused() -> None:
    ledger = Ledger()
    ledger.captured()
    ledger.processed()
    with pytest.raises(ValueError, match="0 are in flight"):
        ledger.drop("stale")
    with pytest.raises(ValueError, match="not one of"):
        ledger.drop("bored")  # type: ignore[arg-type]


def test_slot_keeps_the_newest() -> None:
    slot: Slot[int] = Slot()
    assert slot.take(0.0) is None
    assert slot.put(1) is None
    assert slot.put(2) == 1
    slot.close()
    assert slot.put(3) == 3
    assert not slot.spent
    assert slot.take(1.0) == 2
    assert slot.spent


def test_slot_holds_back_a_demand_paced_writer() -> None:
    slot: Slot[int] = Slot()
    left: list[int | None] = []
    writer = threading.Thread(target=lambda: left.extend(slot.put_when_empty(number) for number in range(4)))
    writer.start()
    taken = [slot.take(1.0) for _ in range(2)]
    wait_until(lambda: len(left) == 3)
    slot.close()
    writer.join(1)
    assert taken == [0, 1]
    assert left == [None, None, None, 3]


def test_epoch_waits_for_all_who_joined() -> None:
    clock = Clock()
    epoch = Epoch(clock)
    epoch.join()
    epoch.join()
    starts: list[float] = []
    first = threading.Thread(target=lambda: starts.append(epoch.ready()))
    first.start()
    time.sleep(0.1)
    assert starts == []
    starts.append(epoch.ready())
    first.join(1)
    assert starts[0] == starts[1] == epoch.start_s
    assert starts[0] >= 0.1


def test_backoff_grows_to_its_limit_with_jitter() -> None:
    backoff = Backoff(0.25, 5.0)
    delays = [backoff.next_s() for _ in range(8)]
    for delay, whole in zip(delays, (0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0), strict=True):
        assert 0.75 * whole <= delay <= whole
    backoff.reset()
    assert backoff.next_s() <= 0.25


@pytest.mark.parametrize(("fps_in", "fps_out"), [(30, 10), (30, 30), (30, 12), (25, 2), (10, 30)])
def test_rate_limit(fps_in: int, fps_out: int) -> None:
    limit = RateLimit(fps_out)
    jitter = random.Random(1)
    admitted = sum(limit.admits(n / fps_in + jitter.uniform(0, 0.004)) for n in range(fps_in * 10))
    assert admitted == pytest.approx(10 * min(fps_in, fps_out), rel=0.05)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("rtsp://me:pa:ss@cam/x", "rtsp://me:***@cam/x"),
        ("open 'http://a:b@c:80/v?token=abc&x=1'", "open 'http://a:***@c:80/v?token=***&x=1'"),
        ("rtsp://me:p@ss@cam/1", "rtsp://me:***@cam/1"),
        ("http://h/v.cgi?user=a&pwd=b", "http://h/v.cgi?user=a&pwd=***"),
        ("rtsp://cam:8554/a@b", "rtsp://cam:8554/a@b"),
    ],
)
def test_passwords_are_redacted(text: str, clean: str) -> None:
    assert redact(text) == clean


class ScriptedReader:
    """Gives pictures at 50 a second; `fault(number of reader, number of picture)` may hang."""

    def __init__(self, number: int, fault: Callable[[int, int], None]) -> None:
        self._number, self._fault, self._n = number, fault, 0
        self.closed = False

    def open(self) -> None:
        self._fault(self._number, -1)

    def read(self) -> Picture | None:
        time.sleep(0.02)
        self._fault(self._number, self._n)
        self._n += 1
        return np.full((2, 2, 3), self._number, np.uint8), None

    def close(self) -> None:
        self.closed = True


def _scripted(
    fault: Callable[[int, int], None], watch: Watch, **patience: float
) -> tuple[VideoCapture, list[ScriptedReader]]:
    readers: list[ScriptedReader] = []

    def make(spec: str, wish: Any) -> ScriptedReader:
        readers.append(ScriptedReader(len(readers), fault))
        return readers[-1]

    capture = VideoCapture(
        "scripted",
        name="camera",
        kind=SourceKind("scripted", "scripted", lambda spec: True, live=True, video=make),
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        patience=Patience(**patience),
    )
    return capture, readers


def test_a_hung_reader_is_abandoned_and_its_late_pictures_discarded() -> None:
    free = threading.Event()

    def fault(reader: int, picture: int) -> None:
        if reader == 0 and picture == 30:
            free.wait(20)

    watch = Watch()
    capture, readers = _scripted(fault, watch)
    with Taker(capture) as taker:
        stalled_s = watch.wait_for("stalled")
        last_s = max(f.t_capture_s for f in taker.frames)
        assert stalled_s - last_s <= 1.0
        watch.wait_for("reconnected")
        wait_until(lambda: taker.frames[-1].image[0, 0, 0] == 1)
        free.set()
        wait_until(lambda: readers[0].closed)
        time.sleep(0.1)
        assert {int(f.image[0, 0, 0]) for f in taker.frames[35:]} == {1}
    counts = capture.ledger.counts()
    assert counts.dropped["reconnect"] == 1
    assert counts.reconnects == 1
    assert balanced(counts)
    assert [f.id for f in taker.frames] == sorted({f.id for f in taker.frames})


def test_stop_does_not_wait_for_a_hung_reader() -> None:
    free = threading.Event()

    def fault(reader: int, picture: int) -> None:
        if picture == 5:
            free.wait(20)

    capture, readers = _scripted(fault, Watch())
    capture.start()
    wait_until(lambda: capture.ledger.counts().captured == 5)
    began = time.monotonic()
    capture.stop()
    assert time.monotonic() - began < 0.7
    assert capture.ended
    free.set()
    wait_until(lambda: readers[0].closed)
    assert capture.ledger.counts().in_flight == 0


def test_a_reader_that_hangs_in_open_is_an_error() -> None:
    free = threading.Event()
    capture, _ = _scripted(lambda reader, picture: bool(free.wait(20)) and None, Watch(), open_s=0.3)
    capture.start()
    wait_until(lambda: capture.ended, 2)
    assert "gave nothing" in str(capture.error)
    free.set()
    capture.stop()


def test_it_is_opened_again_for_as_long_as_it_takes() -> None:
    def fault(reader: int, picture: int) -> None:
        if (reader == 0 and picture == 10) or 1 <= reader <= 4:
            raise TransientSourceError("not there")

    watch = Watch()
    capture, readers = _scripted(fault, watch, backoff_min_s=0.02, backoff_max_s=0.1)
    with Taker(capture):
        watch.wait_for("reconnected")
        assert len(readers) == 6
        assert capture.error is None
    assert watch.states() == ["opening", "live", "lost", "reconnected", "ended"]
    assert all(reader.closed for reader in readers)


def test_a_listener_that_raises_does_not_end_the_capture() -> None:
    watch = Watch()

    def bad_listener(name: str, state: str, reason: str) -> None:
        raise RuntimeError("bug")

    capture = open_video(
        "test://?size=64x48&seconds=0.3",
        name="camera",
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=bad_listener,
    )
    with Taker(capture) as taker:
        taker.join()
    assert len(taker.frames) == 9


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    watch = Watch()
    for _ in range(5):
        capture = open_video(
            "test://?size=64x48",
            name="camera",
            clock=watch.clock,
            epoch=watch.epoch,
            on_status=watch.on_status,
        )
        with Taker(capture) as taker:
            wait_until(lambda taker=taker: len(taker.frames) > 0)  # type: ignore[misc]
    wait_until(lambda: set(threading.enumerate()) <= before, 1)


def _tone(first_s: float, seconds: float, rate_hz: int, hz: float = 300.0) -> np.ndarray:
    t_s = first_s + np.arange(round(seconds * rate_hz)) / rate_hz
    return np.sin(2 * np.pi * hz * t_s).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
def test_cutter_keeps_time_and_tone(rate_hz: int) -> None:
    cutter = BlockCutter("mic", live=True)
    blocks = []
    for n in range(100):
        piece = Sound(_tone(n * 0.02, 0.02, rate_hz), rate_hz)
        blocks += cutter.push(piece, 5.0 + n * 0.02)
    assert 2.0 - len(blocks) * BLOCK_S < 0.1
    heard = np.concatenate([block.samples for block in blocks])
    wanted = _tone(0.0, len(heard) / 16_000, 16_000)
    inner = slice(800, -800)
    assert np.abs(heard[inner] - wanted[inner]).max() < 0.01
    for n, block in enumerate(blocks):
        assert block.t_start_s == pytest.approx(5.0 + n * BLOCK_S, abs=1e-3)


def test_cutter_follows_a_clock_that_is_off() -> None:
    cutter = BlockCutter("mic", live=True)
    worst_s, silence = 0.0, np.zeros(320, np.float32)
    for n in range(50 * 600):
        true_s = n * 0.02 * (1 + 400e-6)
        for block in cutter.push(Sound(silence, 16_000), true_s):
            assert block.gap_s == 0.0
            worst_s = max(worst_s, abs(block.t_start_s + BLOCK_S - true_s - 0.02))
    assert worst_s < 0.034


def test_cutter_stamps_gaps() -> None:
    cutter = BlockCutter("mic", live=True)
    piece = Sound(np.zeros(16_000, np.float32), 16_000)
    first = cutter.push(piece, 0.0)
    assert len(first) == 31
    second = cutter.push(piece, 3.0)
    assert second[0].t_start_s == 3.0
    assert second[0].gap_s == pytest.approx(3.0 - 31 * BLOCK_S)
    assert {block.gap_s for block in second[1:]} == {0.0}
    lost = Sound(np.zeros(16_000, np.float32), 16_000, lost=True)
    third = cutter.push(lost, 4.1)
    assert third[0].gap_s == pytest.approx(4.1 - second[-1].t_start_s - BLOCK_S)


def test_cutter_fills_up_the_end() -> None:
    cutter = BlockCutter("file", live=False)
    blocks = cutter.push(Sound(np.ones(700, np.float32), 16_000), 0.0) + cutter.flush()
    assert [len(block.samples) for block in blocks] == [512, 512]
    assert blocks[1].samples.sum() == pytest.approx(188, abs=0.01)  # steps of 16 bit
