"""The live page in a real browser: what a person sees, and their own camera and microphone."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

import av
import pytest

import edgemm
from edgemm.errors import BundleError
from edgemm.live.frames import Frame
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkLimits
from edgemm.live.sources.testing import read_clock
from tests.live.live_fakes import FakeModel, KeepSink, Seeing, until, within
from tests.live.web_browser import CLOCK, Browser, chromium, write_clip, write_question, write_wav, write_y4m
from tests.live.web_clients import WebSink, running

# A hash of the picture that is shown.
LOOK = """(() => {
  const video = document.querySelector("#video"), canvas = document.createElement("canvas");
  canvas.width = 32; canvas.height = 24;
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 32, 24);
  return pen.getImageData(0, 0, 32, 24).data.join();
})()"""
BOXES = """document.querySelector("#boxes").getContext("2d")
  .getImageData(0, 0, document.querySelector("#boxes").width, document.querySelector("#boxes").height)
  .data.some((value) => value > 0)"""


# What every page of a browser runs first: it has no WebRTC, or what it sends never arrives.
WITHOUT = {
    "WebRTC": "",
    "WebSocket": "delete window.RTCPeerConnection",
    "WebSocket where WebRTC does not connect": r"""
      const set = RTCPeerConnection.prototype.setRemoteDescription;
      RTCPeerConnection.prototype.setRemoteDescription = function ({ type, sdp }) {
        return set.call(this, { type, sdp: sdp.replace(/^(a=candidate:.*) [0-9]+ typ/gm, "$1 9 typ") });
      };
    """,
}

# What a person is told.
TOLD = {
    "WebRTC": "Sent by WebRTC",
    "WebSocket": "Sent by WebSocket: this browser has no WebRTC",
    "WebSocket where WebRTC does not connect": "Sent by WebSocket: WebRTC does not connect",
}
# How many ms it takes until that is told.
UNTIL_SENT = """(async () => {
  const began = performance.now();
  while (!document.querySelector("#own-state").innerText) await new Promise((done) => setTimeout(done, 50));
  return performance.now() - began;
})()"""
ENDED = "Sent by WebSocket: the WebRTC connection ended"

# The id of the frame that is shown, as the page has it.
FRAME = "document.querySelector('#video').dataset.frame"


@pytest.fixture
def browser(tmp_path):
    """A browser with the switches of a test."""
    opened = []

    def start(*switches):
        opened.append(Browser(tmp_path, *switches))
        return opened[-1]

    chromium()
    yield start
    for one in opened:
        one.close()


def test_moving_pictures_a_caption_and_the_answer_to_a_typed_question(browser, tmp_path):
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(work_s=0.01), camera="test://?size=640x480&fps=15") as pipeline:
        page = browser()
        page.open(sink.url)
        page.until("document.querySelector('#video').width === 640")
        seen = set()
        until(lambda: seen.add(page.js(LOOK)) or len(seen) >= 4, 30)
        page.until("document.querySelector('#caption').innerText === 'a yellow square on a gradient'")
        page.until(BOXES)
        page.type("#question", "what is here?")
        page.until("document.querySelector('#answers .a')?.innerText === 'it is here'")
        assert page.text("#answers .q") == "what is here?"
        assert "camera: live" in page.text("#sources")
        page.until("document.querySelector('#frames').innerText.includes('captured =')")
        page.until("document.querySelectorAll('#stages .stage').length >= 4")
        assert "numpy" in page.text("#parts")
        page.js("[...document.querySelectorAll('#tasks button')].find((b) => b.innerText === 'detect').click()")
        page.until("document.querySelector('#tasks [aria-pressed=false]')?.innerText === 'detect'")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.js("document.querySelector('#record').click()")
        page.until("document.querySelector('#record-state').innerText === '2 s'")
        page.js("document.querySelector('#record').click()")
        page.until("/^edgemm-.*[.](webm|mp4), [0-9.]+ MB$/.test(document.querySelector('#record-state').innerText)")
        until(lambda: [*tmp_path.glob("edgemm-*[m4]")], 30)
        with av.open(str(*tmp_path.glob("edgemm-*[m4]"))) as saved:
            pictures = [frame.to_ndarray(format="rgb24") for frame in saved.decode(video=0)]
        assert {picture.shape for picture in pictures} == {(480, 640, 3)}
        assert len({picture.tobytes() for picture in pictures}) >= 4
        kept = Path(os.environ.get("EDGEMM_KEEP_PICTURES", tmp_path))
        page.js("[...document.querySelectorAll('#tasks [aria-pressed=false]')].forEach((b) => b.click())")
        page.until(BOXES)
        page.js("document.activeElement.blur(), window.scrollTo(0, 0)")
        page.look(kept / "light.png")
        page.look(kept / "dark.png", dark=True)
        page.look(kept / "phone.png", width=390, height=1800, phone=True)
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert not page.errors()
        pipeline.stop()
        page.until("document.querySelector('#link').innerText === 'the run has ended'")


def test_pictures_by_webrtc_are_the_frames_that_the_page_takes_them_for(browser):
    pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    sink, keep = WebSink("127.0.0.1:0"), KeepSink(SinkLimits(events=100, frames=10_000))
    pipeline = Pipeline(Seeing(), StreamOptions(cameras=("test://?size=320x240&fps=15",)), [sink, keep])
    pipeline.start()
    try:
        page = browser()
        page.open(sink.url)
        page.until("document.querySelector('#way').innerText === 'Pictures by WebRTC'")
        until(lambda: sink.pictures.viewers == 0, 3)
        page.until(BOXES)
        seen = set()
        until(lambda: seen.add(tuple(page.js(f"[Number({FRAME}), {CLOCK}]"))) or len(seen) >= 8, 30)
        assert sink._server.peers.viewers == 1
        asyncio.run_coroutine_threadsafe(sink._server.peers.close(), sink._loop).result(5)
        page.until("document.querySelector('#way').innerText === 'Pictures by MJPEG'", 5)
        frame = page.js(FRAME)
        page.until(f"{FRAME} !== '{frame}'", 5)
        assert sink.pictures.viewers == 1
        assert not page.errors()
    finally:
        pipeline.stop()
    clocks = {item.id: read_clock(item.image) for item in keep.items if isinstance(item, Frame)}
    assert {frame: clocks[frame] for frame, _ in seen} == dict(seen)


def test_a_browser_that_is_killed_is_noticed_within_two_seconds(browser):
    pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=15"):
        page = browser()
        page.open(sink.url)
        page.until("document.querySelector('#way').innerText === 'Pictures by WebRTC'")
        page.close()
        within(2, lambda: sink._server.peers.viewers == sink.pictures.viewers == len(sink._server._viewers) == 0)


def test_another_camera_comes_by_webrtc_too(browser):
    pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    sink = WebSink("127.0.0.1:0")
    cameras = ("test://?size=320x240&fps=15", "test://?size=192x144&fps=15")
    pipeline = Pipeline(FakeModel(), StreamOptions(cameras=cameras), [sink])
    pipeline.start()
    try:
        page = browser()
        page.open(sink.url)
        page.until("document.querySelectorAll('#cameras button').length === 2")
        for n, width_px in [(1, 192), (0, 320), (1, 192)]:
            page.js(f"document.querySelectorAll('#cameras button')[{n}].click()")
            page.until(f"document.querySelector('#video').width === {width_px}")
            page.until("document.querySelector('#way').innerText === 'Pictures by WebRTC'")
            assert page.js("document.querySelector('#video').width") == width_px
            until(lambda: (sink._server.peers.viewers, sink.pictures.viewers) == (1, 0), 3)
        assert not page.errors()
    finally:
        pipeline.stop()


def test_a_page_that_is_one_too_many_for_webrtc_shows_mjpeg(browser):
    rtc = pytest.importorskip("tests.live.web_rtc", reason="the extra webrtc is not installed")
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=15"), ExitStack() as stack:
        until(sink.pictures.sources)
        for one in [stack.enter_context(rtc.viewer(sink)) for _ in range(2)]:
            assert one.watch(sink)[0] == 200
        page = browser()
        page.open(sink.url)
        page.until(BOXES)
        frame = page.js(FRAME)
        page.until(f"{FRAME} !== '{frame}'", 5)
        assert page.text("#way") == "Pictures by MJPEG"
        assert (sink._server.peers.viewers, sink.pictures.viewers) == (2, 1)


def test_without_webrtc_the_page_shows_mjpeg(browser):
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=15"):
        page = browser()
        page.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.RTCPeerConnection")
        page.open(sink.url)
        page.until(BOXES)
        seen = set()
        until(lambda: seen.add(page.js(LOOK)) or len(seen) >= 4, 30)
        assert page.text("#way") == "Pictures by MJPEG"
        assert (sink._server.peers.viewers, sink.pictures.viewers) == (0, 1)
        assert not page.errors()


def test_the_last_minute_can_be_looked_back_at(browser):
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=10"):
        page = browser()
        page.open(sink.url)
        page.until(BOXES)
        page.until("document.querySelector('#caption').innerText === 'a yellow square on a gradient'")
        time.sleep(3.0)
        now_ms = page.js(CLOCK)
        for seconds in (-2, -1, -30):
            page.js(f"document.querySelector('#back').value = {seconds};"
                    "document.querySelector('#back').dispatchEvent(new Event('input'))")  # fmt: skip
            time.sleep(0.3)
            seen = [page.js(CLOCK), page.js(LOOK)]
            if seconds > -30:
                assert 1000 * seconds - 600 < seen[0] - now_ms < 1000 * seconds + 600
                assert page.text("#caption") == "a yellow square on a gradient"
            assert page.js(BOXES)
            time.sleep(0.4)
            assert seen == [page.js(CLOCK), page.js(LOOK)]
        page.js("document.querySelector('#now').click()")
        page.until(f"{CLOCK} > {now_ms + 1000}", 5)
        assert page.js("document.querySelector('#now').hidden && document.querySelector('#back').value === '0'")
        assert not page.errors()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(browser, tmp_path, dark):
    axe = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=10"):
        page = browser()
        page.open(sink.url)
        page.until("document.querySelector('#caption').innerText === 'a yellow square on a gradient'")
        page.until("document.querySelectorAll('#stages .stage').length >= 4")
        page.look(tmp_path / "seen.png", dark=dark)
        page.js(f"{axe}; true")
        found = page.js(
            "axe.run().then((r) => r.violations.map((v) => [v.id, v.impact, v.nodes[0].html.slice(0, 200)]))"
        )
    assert found == []


def test_every_control_has_a_name_and_is_reached_by_keyboard(browser):
    sink = WebSink("127.0.0.1:0")
    with running(sink, Seeing(), camera="test://?size=320x240&fps=10"):
        page = browser()
        page.open(sink.url)
        page.until("!!document.querySelector('#tasks button')")
        names = {
            node["name"]["value"]
            for node in page.call("Accessibility.getFullAXTree")["nodes"]
            if node.get("role", {}).get("value") in ("button", "textbox", "checkbox", "link", "image", "img", "list")
            and not node.get("ignored")
        }
        assert "" not in names
        assert {"Question", "Ask", "classify", "What the camera sees", "Answers"} <= names
        stops = set()
        for _ in range(18):
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            stops.add(page.js("document.activeElement.id || document.activeElement.innerText"))
        assert {"question", "Ask", "classify", "detect", "caption", "events"} <= stops


def fake_devices(folder, write_video, write_sound):
    """The switches of a browser whose camera and microphone are such files."""
    video, sound = folder / "own.y4m", folder / "own.wav"
    write_video(video)
    write_sound(sound)
    return (
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={video}", f"--use-file-for-fake-audio-capture={sound}",
    )  # fmt: skip


@pytest.fixture
def own(tmp_path):
    return fake_devices(tmp_path, write_y4m, write_wav)


def grant(page):
    """Presses the button that gives camera and microphone."""
    page.until(
        "!document.querySelector('#own').hidden && document.querySelector('#consent').innerText.includes('camera')"
    )
    page.js("document.querySelector('#consent').click()")


@pytest.mark.parametrize("way", ["WebRTC", "WebSocket", "WebSocket where WebRTC does not connect"])
def test_the_viewers_own_camera_and_microphone(browser, own, way):
    if way == "WebRTC":
        pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera="browser://", mic="browser://", tasks=("classify", "transcribe")):
        page = browser(*own)
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT[way])
        page.open(sink.url)
        began = time.monotonic()
        grant(page)
        assert page.js(UNTIL_SENT) < 8000  # 6 s for an answer, 2 s to connect
        assert page.text("#own-state") == TOLD[way]
        page.until("document.querySelector('#video').width === 320")
        first_s = time.monotonic() - began
        seen = set()
        until(lambda: seen.add(page.js(LOOK)) or len(seen) >= 3, 30)
        page.until("document.querySelector('#transcript').innerText.includes('seconds of sound')", 30)
        assert re.search(r"mic: (live|back)", page.text("#sources"))  # back where the machine stood still
        until(lambda: sink._server.peers.senders == (way == "WebRTC"))  # the server gives it up a second after the page
        lines = "document.querySelectorAll('#transcript li:has(span:not(.partial))').length"
        page.js("document.querySelector('#listen').click()")
        time.sleep(3.0)
        quiet = page.js(lines)
        time.sleep(4.0)
        assert page.js(lines) == quiet
        page.js("document.querySelector('#talk').dispatchEvent(new PointerEvent('pointerdown'))")
        page.until(f"{lines} > {quiet}")
        assert first_s < 20
        if way == "WebRTC":  # and where it ends later, it goes on by WebSocket
            asyncio.run_coroutine_threadsafe(sink._server.peers.close(), sink._loop).result(5)
            page.until(f"document.querySelector('#own-state').innerText === '{ENDED}'", 5)
            page.until("document.querySelector('#sources').innerText.includes('camera: back')", 10)
        page.js("document.querySelector('#consent').click()")
        page.until("document.querySelector('#sources').innerText.includes('camera: lost')", 5)
        assert not page.errors()


def test_a_killed_browser_that_sends_is_noticed_within_two_seconds(browser, own):
    pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    sink = WebSink("127.0.0.1:0")
    with running(sink, camera="browser://", mic="browser://", tasks=("classify", "transcribe")) as pipeline:
        page = browser(*own)
        page.open(sink.url)
        grant(page)
        page.until("document.querySelector('#own-state').innerText === 'Sent by WebRTC'")
        until(lambda: pipeline.inputs.counts()["camera"].captured > 5, 30)
        page.close()
        within(2, lambda: sink._server.peers.senders == 0)
        within(1, lambda: not [thread for thread in threading.enumerate() if thread.name.endswith("-decoder")])
        taken = pipeline.inputs.counts()["camera"].captured
        time.sleep(0.5)
        assert pipeline.inputs.counts()["camera"].captured == taken


def test_a_spoken_question_is_answered_over_pictures_that_came_by_webrtc(browser, tmp_path):
    """The default bundle, a fake camera that shows the clip, and a voice that asks."""
    pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
    try:
        model = edgemm.load()
    except BundleError as error:
        pytest.skip(str(error))
    own = fake_devices(tmp_path, write_clip, lambda path: write_question(path, "What is in the picture?"))
    sink = WebSink("127.0.0.1:0")
    with running(sink, model, camera="browser://", mic="browser://") as pipeline:
        page = browser(*own)
        page.open(sink.url)
        grant(page)
        page.until("document.querySelector('#own-state').innerText === 'Sent by WebRTC'")
        page.until("document.querySelector('#caption').innerText.length > 5", 60)
        page.until("document.querySelector('#transcript').innerText.toLowerCase().includes('in the picture')", 90)
        page.until("document.querySelector('#answers .a:not(.going)')?.innerText.length > 1", 90)
        assert "in the picture" in page.text("#answers .q").lower()
        # From the first picture to the answer they came this way.
        assert page.text("#own-state") == "Sent by WebRTC"
        assert sink._server.peers.senders == 1
        assert pipeline.inputs.counts()["camera"].captured > 10
        assert not page.errors()
