"""A viewer of the live page that gets its pictures by WebRTC: aiortc's own other end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

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


class Viewer:
    """A page's WebRTC half in a thread. `pictures` are (decoded RGB, time stamp in s, when it came)."""

    def __init__(self, page, *, answers=True):
        self.page, self.answers = page, answers
        self.pictures, self.pings, self.ended = [], 0, False
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
        self.link.addTransceiver("video", direction="recvonly")
        self.channel = self.link.createDataChannel("alive")
        self.channel.on("message", self._pinged)
        self.link.on("track", self._track)
        await self.link.setLocalDescription(await self.link.createOffer())
        return self.link.localDescription.sdp

    def watch(self, sink, source="camera", **headers):
        """Offers, and follows the answer if there is one. Returns status and document."""
        offer = {"viewer": named(self.page), "source": source, "sdp": self.offer()}
        status, document = post(sink, offer, **headers)
        if status == 200:
            self.call(self.link.setRemoteDescription(aiortc.RTCSessionDescription(document["sdp"], "answer")))
        return status, document

    def _pinged(self, message):
        self.pings += 1
        if self.answers:
            self.channel.send("pong")

    def _track(self, track):
        self.reading = self.loop.create_task(self._read(track))

    async def _read(self, track):
        with suppress(aiortc.MediaStreamError):
            while True:
                frame = await track.recv()
                self.pictures.append((frame.to_ndarray(format="rgb24"), float(frame.time), time.monotonic()))
        self.ended = True

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


@contextmanager
def viewer(sink, **options):
    """A page and its WebRTC half."""
    page = Page(sink)
    one = Viewer(page, **options)
    try:
        yield one
    finally:
        one.close()
        page.close()
