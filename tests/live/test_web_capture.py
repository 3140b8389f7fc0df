"""A page's camera and microphone as the run's source, without a browser: the sockets that a page uses."""

from __future__ import annotations

import json
import math
import threading
import time

import cv2
import numpy as np
import pytest

from edgemm.errors import SourceError, UsageError
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sources import browser
from edgemm.live.sources.base import Wish
from tests.live.live_fakes import FakeModel, speech_like, until
from tests.live.web_clients import WebSink, browser_runs, connect, flood

exceptions = pytest.importorskip("websockets.exceptions")


def jpeg(value=200, size_px=(160, 120)):
    image = np.full((size_px[1], size_px[0], 3), 20, np.uint8)
    image[..., 2] = value  # red, in OpenCV's order
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture
def run():
    """A run on a browser, with the sink that keeps its events."""
    with browser_runs() as start:
        yield start


def opened(sink, path):
    return connect(f"ws://127.0.0.1:{sink.port}{path}", proxy=None)


def states(keep, source):
    return [event.state for event in keep.of("status") if event.source == source]


def test_pictures_of_a_page_are_frames_and_it_is_told_when_to_send(run):
    sink, keep, pipeline = run(size_px=(320, 240), fps=12.0)
    until(lambda: states(keep, "camera") == ["opening"])
    with opened(sink, "/camera") as page:
        assert json.loads(page.recv(5)) == {"taken": False, "width_px": 320, "height_px": 240, "fps": 12.0}
        for n in range(5):
            page.send(jpeg())
            assert json.loads(page.recv(5))["taken"], n
        page.send(b"no picture")
        assert json.loads(page.recv(5))["taken"]
        until(lambda: keep.of("labels"))
        assert keep.of("labels")[0].labels[0].label == "red"
        until(lambda: pipeline.inputs.counts()["camera"].captured >= 5)
    until(lambda: states(keep, "camera") == ["opening", "live", "lost"], 3)
    counts = pipeline.inputs.counts()["camera"]
    assert counts.captured == counts.processed + sum(counts.dropped.values()) + counts.in_flight
    with opened(sink, "/camera") as page:
        page.recv(5)
        for _ in range(3):
            page.send(jpeg())
            page.recv(5)
        until(lambda: states(keep, "camera")[-1] == "reconnected", 3)
    assert pipeline.inputs.counts()["camera"].reconnects == 1


def test_it_waits_for_consent_and_stops_at_once(run):
    _, keep, pipeline = run(mic="browser://")
    time.sleep(1.0)
    for source in pipeline.inputs.all:
        assert source._supervisor._patience.open_s == source._supervisor._patience.never_opened_s == math.inf
    assert states(keep, "camera") == states(keep, "mic") == ["opening"]
    pipeline.stop()
    until(lambda: pipeline.over, 3)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("edgemm-read")], 3)


def test_another_page_takes_over(run):
    sink, keep, _ = run()
    with opened(sink, "/camera") as first:
        first.recv(5)
        first.send(jpeg())
        first.recv(5)
        with opened(sink, "/camera") as second:
            second.recv(5)
            with pytest.raises(exceptions.ConnectionClosed):
                list(first)
            assert first.close_code == 4001
            second.send(jpeg())
            assert json.loads(second.recv(5))["taken"]
            assert "lost" not in states(keep, "camera")


def test_sound_of_a_page_is_transcribed(run):
    sink, keep, _ = run(cameras=(), mic="browser://")
    sound = (speech_like(2.0, [(0.3, 1.0)]) * 32767).astype("<i2")
    with opened(sink, "/mic") as page:
        page.send(json.dumps({"rate_hz": 16_000}))
        began = time.monotonic()
        for start in range(0, len(sound), 512):
            time.sleep(max(0.0, began + start / 16_000 - time.monotonic()))
            page.send(sound[start : start + 512].tobytes())
        until(lambda: [e for e in keep.of("transcript") if e.final], 5)
    said = next(e for e in keep.of("transcript") if e.final)
    assert 0.6 < float(said.text.split()[0]) < 1.6
    until(lambda: states(keep, "mic")[-1] == "lost", 3)


def test_a_run_that_takes_nothing_refuses_senders():
    sink = WebSink("127.0.0.1:0")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=("test://?size=160x120&fps=10",)), [sink])
    pipeline.start()
    until(lambda: sink.pictures.sources)
    for path in ("/camera", "/mic"):
        with pytest.raises(exceptions.InvalidStatus, match="409"):
            opened(sink, path)
    pipeline.stop()


def test_pictures_that_are_too_large_are_refused_before_they_are_decoded(run):
    header = b"\xff\xd8\xff\xc0\x00\x11\x08" + (60_000).to_bytes(2) + (60_000).to_bytes(2) + bytes(20)
    assert browser.jpeg_size_px(header) == (60_000, 60_000)
    assert browser.decoded(header) is None
    assert browser.decoded(b"") is None
    assert browser.decoded(jpeg(size_px=(33, 17))).shape == (17, 33, 3)
    sink, _, _ = run()
    with opened(sink, "/camera") as page:
        page.recv(5)
        with pytest.raises(exceptions.ConnectionClosed):
            flood(lambda: page.send(bytes(5_000_000)), 100, 0.05)
        assert page.close_code in (1006, 1009)


def test_without_the_page_there_is_no_browser(monkeypatch):
    monkeypatch.setattr(browser, "SERVED_S", 0.1)
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=("browser://",)))
    with pytest.raises(SourceError, match="needs the live page"):
        pipeline.run()
    with pytest.raises(UsageError, match="twice"):
        StreamOptions(cameras=("browser://", "browser://"))
    with pytest.raises(SourceError, match="no browser"):
        browser.BrowserVideo("browser://x", Wish())
