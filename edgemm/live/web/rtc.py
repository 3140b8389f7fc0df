"""Pictures by WebRTC: a peer for each page that gets them so, and when it is gone (extra `webrtc`)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgemm.errors import EdgemmError, InputError, RuntimeUnavailable, SinkError
from edgemm.live.frames import Frame
from edgemm.live.web.guard import Rate
from edgemm.live.web.offer import viewers_offer
from edgemm.live.web.video import Feed, track

# Each viewer costs an encoder of its own; everybody else shares one JPEG a picture.
VIEWERS = 2
# Offers of all pages, a second and at once.
PER_S, BURST = 2.0, 10.0
CONNECT_S = 6.0
PING_S = 0.3
# Together with PING_S: a page that is gone is noticed within 2 s.
SILENCE_S = 1.2
NICENESS = 10

_CLOSE_S = 1.0
_ELSE = "pictures are at /stream.mjpg for everybody"


def available() -> bool:
    """Whether aiortc is installed."""
    return importlib.util.find_spec("aiortc") is not None


def workers() -> ThreadPoolExecutor:
    """Threads for encoding: the model and the cameras go first where there is too little of the processor."""

    def yield_to_others() -> None:
        if sys.platform == "linux":  # elsewhere priorities are a process's
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

    return ThreadPoolExecutor(VIEWERS + 1, "edgemm-page-work", yield_to_others)


class Unavailable(SinkError):
    """This page gets no WebRTC, or not now: MJPEG is there for everybody."""


class TooMany(SinkError):
    """Offers come faster than anybody needs."""


class Peers:
    """At most `VIEWERS` peers, a page at most one. Everything but `viewers` belongs to one event loop.

    Only addresses of this machine are offered, no STUN or TURN server is asked, and those that a page writes into its
    offer are not contacted: the page's own checks show where it is.
    """

    def __init__(self, newest: Callable[[str], Frame | None]) -> None:
        self._newest = newest
        self._peers: dict[object, _Peer] = {}
        self._rate = Rate(PER_S, BURST)
        self.viewers = 0

    async def answer(self, page: object, source: str, offer: str, gone: Callable[[], bool]) -> str:
        """The SDP that answers a page's offer; pictures flow until the page ends it or is `gone`.

        Raises InputError for an offer that is none, Unavailable, TooMany, and RuntimeUnavailable without aiortc.
        """
        if not self._rate.admits():
            raise TooMany("there are too many offers", hint=_ELSE)
        offer = viewers_offer(offer)
        await self.end(page)
        if len(self._peers) >= VIEWERS:
            raise Unavailable(f"there are {VIEWERS} viewers by WebRTC already", hint=_ELSE)
        peer = self._peers[page] = _Peer(Feed(source, self._newest(source)))
        self.viewers = len(self._peers)
        peer.on_gone = lambda: self._ended(page, peer)
        try:
            answer = await peer.answer(offer)
        except BaseException:
            await peer.close()
            raise
        if gone():
            await peer.close()
        return answer

    def picture(self, frame: Frame) -> None:
        """A new picture of a camera."""
        for peer in self._peers.values():
            peer.feed.put(frame)

    async def end(self, page: object) -> None:
        """The page has gone, or gets no more pictures so."""
        if peer := self._peers.get(page):
            await peer.close()

    async def close(self) -> None:
        """Ends every peer."""
        await asyncio.gather(*(peer.close() for peer in list(self._peers.values())))

    def _ended(self, page: object, peer: _Peer) -> None:
        if self._peers.get(page) is peer:
            del self._peers[page]
        self.viewers = len(self._peers)


class _Peer:
    """One connection. It closes itself where it does not come about, or when the page says nothing any more."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.on_gone: Callable[[], None] = lambda: None
        self._connection: Any = None
        self._track: Any = None
        self._channel: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        # A connection that is closed while it opens its sockets would leave some open.
        self._answering = asyncio.Lock()
        self._deadline_s = time.monotonic() + CONNECT_S

    async def answer(self, offer: str) -> str:
        async with self._answering:
            return await self._answer(offer)

    async def _answer(self, offer: str) -> str:
        try:
            aiortc: Any = await asyncio.to_thread(importlib.import_module, "aiortc")
        except ImportError as error:
            raise RuntimeUnavailable(f"aiortc cannot be loaded: {error}") from error
        # An empty list: without one aiortc asks a public STUN server.
        self._connection = connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        connection.on("datachannel", self._opened)
        connection.on("connectionstatechange", self._changed)
        self._track = track(self.feed)
        try:
            connection.addTransceiver(self._track, direction="sendonly")
            await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc's parser raises whatever broken text leads to
            raise InputError("the offer is no SDP of a viewer", hint="reload the page") from error
        if self._closing is None:
            self._watch = asyncio.create_task(self._until_silent())
        return str(connection.localDescription.sdp)

    async def close(self) -> None:
        """Ends the connection, its tasks and sockets. The second caller waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._end())
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        try:
            # One that is slow goes on by itself: to break it off would leave its sockets open, too.
            await asyncio.wait({asyncio.create_task(self._disconnect())}, timeout=_CLOSE_S)
        finally:
            self.on_gone()

    async def _disconnect(self) -> None:
        async with self._answering:
            if self._track is not None:
                self._track.stop()
            if self._connection is not None:
                await self._connection.close()

    def _opened(self, channel: Any) -> None:
        if self._channel is None:
            self._channel = channel
            channel.on("message", self._heard)

    def _heard(self, message: object) -> None:
        self._deadline_s = time.monotonic() + SILENCE_S

    async def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            await self.close()

    async def _until_silent(self) -> None:
        while time.monotonic() < self._deadline_s:
            if self._channel is not None and self._channel.readyState == "open":
                self._channel.send("ping")
            await asyncio.sleep(PING_S)
        self._watch = None
        await self.close()


def status_of(error: EdgemmError) -> int:
    """The HTTP status of a refusal."""
    if isinstance(error, TooMany):
        return 429
    return 503 if isinstance(error, (Unavailable, RuntimeUnavailable)) else 400
