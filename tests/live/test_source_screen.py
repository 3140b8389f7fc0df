"""What a display shows is seen, also after it was away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from edgemm.live.capture import VideoCapture, open_video
from edgemm.live.sources.base import Wish
from edgemm.live.sources.screen import screen_video
from tests.rig import display as rig
from tests.rig.display import Display
from tests.rig.watching import Taker, Watch, balanced, wait_until


@pytest.fixture
def display() -> Iterator[Display]:
    reason = rig.missing()
    if reason is not None:
        pytest.skip(reason)
    with Display() as shown:
        yield shown


def _open(spec: str, watch: Watch) -> VideoCapture:
    return open_video(spec, name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)


def _seen(taker: Taker) -> tuple[int, ...]:
    return tuple(int(value) for value in taker.frames[-1].image[120, 100]) if taker.frames else ()


def test_it_follows_the_screen(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DISPLAY", display.name)
    watch = Watch()
    capture = _open("screen://", watch)
    with Taker(capture) as taker:
        for colour in ((250, 10, 20), (0, 200, 90)):
            display.paint(colour)
            wait_until(lambda colour=colour: _seen(taker) == colour)  # type: ignore[misc]
    assert taker.frames[0].image.shape == (240, 320, 3)
    assert watch.states() == ["opening", "live", "ended"]
    assert balanced(capture.ledger.counts())


def test_rate_and_size_are_asked_for(display: Display) -> None:
    reader = screen_video(f"screen://{display.name}", Wish((160, 120), 5.0))
    reader.open()
    try:
        picture = reader.read()
        began_s = time.monotonic()
        for _ in range(5):
            reader.read()
        assert 0.6 < time.monotonic() - began_s < 2
    finally:
        reader.close()
    assert picture is not None
    assert picture[0].shape == (120, 160, 3)


def test_a_display_that_goes_and_comes_back(display: Display) -> None:
    watch = Watch()
    capture = _open(f"screen://{display.name}", watch)
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 3)
        display.unplug()
        watch.wait_for("lost")
        display.plug()
        watch.wait_for("reconnected")
    assert capture.ledger.counts().reconnects == 1


def test_no_display_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    capture = _open("screen://", Watch())
    capture.start()
    wait_until(lambda: capture.ended)
    assert "DISPLAY is not set" in str(capture.error)
    assert "screen://:0" in str(capture.error)
