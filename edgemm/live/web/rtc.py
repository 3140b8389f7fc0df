"""WebRTC: a peer for each page that sees, or sends, by it, and when that page is gone (extra `webrtc`)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from edgemm.errors import EdgemmError, InputError, RuntimeUnavailable, SinkError
from edgemm.live.frames import Frame
from edgemm.live.web.capture import Senders
from edgemm.live.web.guard import Rate
from edgemm.live.web.incoming import Incoming
from edgemm.live.web.offer import cleaned
from edgemm.live.web.video import Feed, Outgoing

# Each viewer costs an encoder of its own; everybody else shares one JPEG a picture.
VIEWERS = 2
# One that sends, and one that is about to take over.
SENDERS = 2
# Offers of all pages, a second and at once.
PER_S, BURST = 2.0, 10.0
# From the answer on. A page gives up after 2 s (page/link.js).
CONNECT_S = 3.0
PING_S = 0.3
# Pings in a row: a page that is gone is noticed within 2 s. They are counted, not timed, as a machine that stands still
# does so for both ends.
UNANSWERED = 4
NICENESS = 10

_CLOSE_S = 1.0
_ELSE = "pictures are at /stream.mjpg for everybody"
_SENDING_ELSE = "a page can send by /camera and /mic"


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
    """This page gets no WebRTC, or not now: there is another way for everything."""


class TooMany(SinkError):
    """Offers come faster than anybody needs."""


class Media(Protocol):
    """What a peer's connection carries: tracks of `kinds`, in the order of the offer, which the page would like to have
    in `direction`. `over`: the page is told to end it, and not to try another way."""

    kinds: Sequence[str]
    direction: str
    over: bool

    def attach(self, connection: Any) -> None:
        """Adds the tracks to a connection that has read no offer yet. Raises EdgemmError."""

    def answered(self) -> None:
        """The offer has its answer."""

    def alive(self) -> bool:
        """Whether anything has come since it was last asked. A page that is too busy to answer pings may still send."""

    def stop(self) -> None:
        """The connection is about to end. May be called without the others."""


M = TypeVar("M", bound=Media)


class Peers:
    """Everybody who sees or sends by WebRTC: at most `VIEWERS` and `SENDERS`. Everything but `viewers` and `senders`
    belongs to one event loop.

    Only addresses of this machine are offered, no STUN or TURN server is asked, and those that a page writes into its
    offer are not contacted: the page's own checks show where it is.
    """

    def __init__(self, newest: Callable[[str], Frame | None]) -> None:
        self._newest = newest
        self._viewing = _Room[Outgoing](VIEWERS, f"there are {VIEWERS} viewers by WebRTC already", _ELSE)
        self._sending = _Room[Incoming](SENDERS, "too many pages send by WebRTC", _SENDING_ELSE)
        self._rate = Rate(PER_S, BURST)

    @property
    def viewers(self) -> int:
        """How many see by WebRTC."""
        return len(self._viewing.peers)

    @property
    def senders(self) -> int:
        """How many send by WebRTC, or are about to."""
        return len(self._sending.peers)

    async def answer(self, page: object, source: str, offer: str, gone: Callable[[], bool]) -> str:
        """The SDP that answers the offer of a page that wants to see; pictures flow until it ends that or is `gone`.

        Raises InputError for an offer that is none, Unavailable, TooMany, and RuntimeUnavailable without aiortc.
        """
        self._admit()
        return await self._viewing.answer(page, Outgoing(Feed(source, self._newest(source))), offer, gone)

    async def receive(
        self, page: object, names: Sequence[str], senders: Senders, offer: str, gone: Callable[[], bool]
    ) -> str:
        """The same for a page that wants to send; `names` are of `KINDS`. Raises the same."""
        self._admit()
        return await self._sending.answer(page, Incoming(names, senders), offer, gone)

    def _admit(self) -> None:
        if not self._rate.admits():
            raise TooMany("there are too many offers", hint=_ELSE)

    def picture(self, frame: Frame) -> None:
        """A new picture of a camera."""
        for peer in self._viewing.peers.values():
            peer.media.feed.put(frame)

    async def end(self, page: object) -> None:
        """The page has gone."""
        await asyncio.gather(self._viewing.end(page), self._sending.end(page))

    async def close(self) -> None:
        """Ends every peer."""
        await asyncio.gather(*(room.end(page) for room in (self._viewing, self._sending) for page in list(room.peers)))


class _Room(Generic[M]):
    """At most `most` peers, a page at most one."""

    def __init__(self, most: int, full: str, hint: str) -> None:
        self._most, self._full, self._hint = most, full, hint
        self.peers: dict[object, _Peer[M]] = {}

    async def answer(self, page: object, media: M, offer: str, gone: Callable[[], bool]) -> str:
        offer = cleaned(offer, media.kinds, media.direction)
        await self.end(page)
        if len(self.peers) >= self._most:
            raise Unavailable(self._full, hint=self._hint)
        peer = self.peers[page] = _Peer(media)
        peer.on_gone = lambda: self._ended(page, peer)
        try:
            answer = await peer.answer(offer)
        except BaseException:
            await peer.close()
            raise
        if gone():
            await peer.close()
        return answer

    async def end(self, page: object) -> None:
        if peer := self.peers.get(page):
            await peer.close()

    def _ended(self, page: object, peer: _Peer[M]) -> None:
        if self.peers.get(page) is peer:
            del self.peers[page]


class _Peer(Generic[M]):
    """One connection. It closes itself where it does not come about, or when the page says nothing any more."""

    def __init__(self, media: M) -> None:
        self.media = media
        self.on_gone: Callable[[], None] = lambda: None
        self._connection: Any = None
        self._channel: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        # A connection that is closed while it opens its sockets would leave some open.
        self._answering = asyncio.Lock()
        self._heard = False

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
        self.media.attach(connection)
        try:
            await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc's parser raises whatever broken text leads to
            raise InputError("the offer is no SDP of a page", hint="reload the page") from error
        if self._closing is None:
            self.media.answered()
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
            self.media.stop()
            if self._connection is not None:
                await self._connection.close()

    def _opened(self, channel: Any) -> None:
        if self._channel is None:
            self._channel = channel
            channel.on("message", self._hear)

    def _hear(self, message: object) -> None:
        self._heard = True

    async def _changed(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            await self.close()

    async def _until_silent(self) -> None:
        silent, most = 0, max(1, round(CONNECT_S / PING_S))
        while silent < most:
            if self._channel is not None and self._channel.readyState == "open":
                most = UNANSWERED
                self._channel.send("over" if self.media.over else "ping")
            await asyncio.sleep(PING_S)
            silent = 0 if self._is_there() else silent + 1
        self._watch = None
        await self.close()

    def _is_there(self) -> bool:
        """Whether there was a sign of the page since this was last asked; none counts once it is to end."""
        came = self.media.alive()
        heard, self._heard = self._heard, False
        return (came or heard) and not self.media.over


def status_of(error: EdgemmError) -> int:
    """The HTTP status of a refusal."""
    if isinstance(error, TooMany):
        return 429
    return 503 if isinstance(error, (Unavailable, RuntimeUnavailable)) else 400
