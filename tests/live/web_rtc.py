"""Pages that see, or send, by WebRTC: aiortc's own other end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest

from tests.live.live_fakes import until
from tests.live.web_clients import Page

aiortc = pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
if not pytest.importorskip("aioice.ice").get_host_addresses(use_ipv4=True, use_ipv6=True):
    pytest.skip("a machine with loopback alone has no address for WebRTC", allow_module_level=True)


def post(sink, document, *, query="", **headers):
    """Status and document of an offer's answer. What is no dictionary is sent as it is."""
    data = json.dumps(document).encode() if isinstance(document, dict) else document
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    asked = urllib.request.Request(f"http://127.0.0.1:{sink.port}/rtc/offer{query}", data, headers)
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith(b"{") else body.decode()


def named(page):
    """The server's name for a page that follows the events."""
    until(lambda: page.has("page"))
    return page.has("page")[0]["viewer"]


class Half:
    """A page's WebRTC half in a thread."""

    def __init__(self, page, *, answers=True):
        self.page, self.answers = page, answers
        self.pings, self.over = 0, False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, work, timeout_s=10):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def offer(self):
        """The text of an offer."""
        return self.call(self._offer())

    async def _offer(self):
        self.link = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.add()
        self.channel = self.link.createDataChannel("alive")
        self.channel.on("message", self._pinged)
        await self.link.setLocalDescription(await self.link.createOffer())
        return self.link.localDescription.sdp

    def ask(self, sink, what, **headers):
        """Offers, and follows the answer if there is one. Returns status and document."""
        offer = {"viewer": named(self.page), **what, "sdp": self.offer()}
        status, document = post(sink, offer, **headers)
        if status == 200:
            self.call(self.link.setRemoteDescription(aiortc.RTCSessionDescription(document["sdp"], "answer")))
        return status, document

    def _pinged(self, message):
        self.pings += 1
        self.over = self.over or message == "over"
        if self.answers:
            self.channel.send("pong")

    def leave(self):
        """Closes the connection as a browser does."""
        self.call(self.link.close())

    def close(self):
        if hasattr(self, "link"):
            self.leave()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.loop.close()


class Viewer(Half):
    """One that sees. `pictures` are (decoded RGB, time stamp in s, when it came)."""

    def __init__(self, page, **options):
        super().__init__(page, **options)
        self.pictures, self.ended = [], False

    def add(self):
        self.link.addTransceiver("video", direction="recvonly")
        self.link.on("track", self._track)

    def watch(self, sink, source="camera", **headers):
        return self.ask(sink, {"source": source}, **headers)

    def _track(self, track):
        self.reading = self.loop.create_task(self._read(track))

    async def _read(self, track):
        with suppress(aiortc.MediaStreamError):
            while True:
                frame = await track.recv()
                self.pictures.append((frame.to_ndarray(format="rgb24"), float(frame.time), time.monotonic()))
        self.ended = True


class Sender(Half):
    """One that sends pictures, uint8 [H, W, 3], as `picture(n)` gives them, and sound, float32 at 16 kHz."""

    def __init__(self, page, *, picture=None, sound=None, fps=15, **options):
        super().__init__(page, **options)
        self.picture, self.sound, self.fps = picture, sound, fps
        self.names = [name for name, what in (("camera", picture), ("mic", sound)) if what is not None]

    def add(self):
        if self.picture is not None:
            self.link.addTransceiver(_Pictures(self.picture, self.fps), direction="sendonly")
        if self.sound is not None:
            self.link.addTransceiver(_Sound(self.sound), direction="sendonly")

    def send(self, sink, names=None, **headers):
        return self.ask(sink, {"send": self.names if names is None else names}, **headers)


class _Pictures(aiortc.VideoStreamTrack):
    def __init__(self, picture, fps):
        super().__init__()
        self._picture, self._fps, self._n, self._began_s = picture, fps, 0, time.monotonic()

    async def recv(self):
        self._n += 1
        await asyncio.sleep(max(0.0, self._began_s + self._n / self._fps - time.monotonic()))
        frame = av.VideoFrame.from_ndarray(self._picture(self._n), "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._n * 90_000 // self._fps, Fraction(1, 90_000)
        return frame


class _Sound(aiortc.AudioStreamTrack):
    def __init__(self, sound):
        super().__init__()
        self._sound, self._n, self._began_s = sound, 0, time.monotonic()

    async def recv(self):
        # As a microphone, which has a piece when it is over.
        await asyncio.sleep(max(0.0, self._began_s + (self._n + 1) * 0.02 - time.monotonic()))
        piece = np.resize(self._sound[self._n * 320 :], 320) if self._n * 320 < len(self._sound) else np.zeros(320)
        frame = av.AudioFrame.from_ndarray((piece[None] * 32767).astype(np.int16), "s16", "mono")
        frame.pts, frame.sample_rate, frame.time_base = self._n * 320, 16_000, Fraction(1, 16_000)
        self._n += 1
        return frame


def held(sink):
    """What the page holds on to: tasks of its loop, and sockets of this process."""
    gc.collect()
    connections = [one for one in psutil.Process().net_connections("inet") if one.type == socket.SOCK_DGRAM]
    return len(asyncio.all_tasks(sink._loop)), len(connections)


@contextmanager
def viewer(sink, kind=Viewer, **options):
    """A page and its WebRTC half."""
    page = Page(sink)
    one = kind(page, **options)
    try:
        yield one
    finally:
        one.close()
        page.close()


def sender(sink, **options):
    """A page that sends."""
    return viewer(sink, Sender, **options)
