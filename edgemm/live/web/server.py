"""The HTTP side of the live page: what runs in its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from edgemm.errors import EdgemmError, InputError, SinkError, missing_extra
from edgemm.live.events import Event, StartedEvent, StatusEvent, SummaryEvent, TranscriptEvent
from edgemm.live.sinks.base import SinkContext
from edgemm.live.sinks.questions import document_of, reply
from edgemm.live.web.capture import Senders, wish
from edgemm.live.web.guard import HEADERS, Guard, Rate
from edgemm.live.web.pictures import Pictures
from edgemm.live.web.rtc import Peers, Unavailable, available, status_of

BACKLOG = 1024
MESSAGE_BYTES = 16_384
HEARTBEAT_S = 4.0
# A slow link must not hold seconds of old pictures in the kernel's buffer.
SEND_BUFFER_BYTES = 131_072

_PAGE = Path(__file__).parent / "page"
_ASSETS = {
    "page.css": "text/css",
    **dict.fromkeys(
        (
            "page.js", "boxes.js", "capture.js", "history.js", "link.js", "numbers.js", "player.js", "record.js",
            "rtc.js", "timeline.js", "worklet.js",
        ),
        "text/javascript",
    ),
    "icon.svg": "image/svg+xml",
}  # fmt: skip
# What a page that is opened late is told of what was.
_REMEMBERED = frozenset({"caption", "description", "answer", "error", "audio_gap", "interrupted"})
_PART = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\nX-Frame: %d\r\n\r\n%b\r\n--frame\r\n"


class Viewer:
    """One page that follows the events: at most `BACKLOG` messages wait for it."""

    def __init__(self, transport: asyncio.Transport, address: str) -> None:
        self.queue: asyncio.Queue[str | None] = asyncio.Queue(BACKLOG + 256)
        self.transport, self.address = transport, address
        self.id = secrets.token_urlsafe(12)
        self.dropped = False

    def put(self, text: str | None) -> bool:
        """False where too much waits already."""
        if text is not None and self.queue.qsize() >= BACKLOG:
            return False
        self.queue.put_nowait(text)
        return True


class Server:
    """The routes, and the clients. Everything but the constructor runs in one event loop.

    A viewer of events for which more than `BACKLOG` messages wait, or that takes nothing for `patience_s`, is dropped
    and reported; so is a viewer of pictures that takes nothing for so long (one on a slow link gets fewer of them).
    The others never wait.
    Beyond `clients` connections new ones are told 503 and closed.
    """

    def __init__(
        self, context: SinkContext, guard: Guard, pictures: Pictures, *, clients: int, patience_s: float
    ) -> None:
        self._context, self._guard, self._pictures = context, guard, pictures
        self._clients, self._patience_s = clients, patience_s
        self._viewers: set[Viewer] = set()
        self._first: dict[str, tuple[int, str]] = {}
        self._recent: deque[tuple[int, str]] = deque(maxlen=60)
        self._on = dict.fromkeys(context.tasks, True)
        self._new = asyncio.Event()
        self._ending = False
        self.senders = Senders()
        self.peers = Peers(pictures.newest)
        # As fast as possible, frames do not come in real time: a video of them would not play.
        self._rtc = available() and not context.media_time

    # --- from the sink ------------------------------------------------------------------------

    async def publish(self, event: Event, text: str) -> None:
        """Hands an event to every viewer."""
        if isinstance(event, StartedEvent):
            self.senders.wanted(event.config)
        if event.type in ("started", "status", "stats", "summary"):
            key = f"status {event.source}" if isinstance(event, StatusEvent) else event.type
            self._first[key] = (event.id, text)
        elif event.type in _REMEMBERED or (isinstance(event, TranscriptEvent) and event.final):
            self._recent.append((event.id, text))
        self._send_all(text)
        while self._context.media_time and any(viewer.queue.qsize() > BACKLOG // 2 for viewer in self._viewers):
            await asyncio.sleep(0.005)
        if isinstance(event, SummaryEvent):
            for viewer in self._viewers:
                viewer.put(None)

    def picture(self) -> None:
        """There is a new picture."""
        self._new.set()
        self._new = asyncio.Event()

    async def end(self, grace_s: float) -> None:
        """Lets viewers take what waits for `grace_s`, then ends every connection."""
        self._ending = True
        self._new.set()
        for viewer in self._viewers:
            viewer.put(None)
        deadline_s = time.monotonic() + grace_s
        await self.peers.close()
        while (self._viewers or self._pictures.viewers) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        for viewer in list(self._viewers):
            viewer.transport.abort()

    # --- connections --------------------------------------------------------------------------

    def application(self) -> Any:
        """The aiohttp application."""
        from aiohttp import web

        async def admit(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
            return await self._admit(request, handler)

        app = web.Application(middlewares=[web.middleware(admit)], client_max_size=MESSAGE_BYTES)
        app.on_response_prepare.append(self._headers)
        app.router.add_get("/", self._index)
        for name in _ASSETS:
            app.router.add_get(f"/{name}", self._asset)
        app.router.add_get("/stream.mjpg", self._stream)
        app.router.add_get("/events", self._events)
        app.router.add_post("/rtc/offer", self._offer)
        app.router.add_get("/camera", self.senders.camera)
        app.router.add_get("/mic", self.senders.mic)
        return app

    def protocols(self, server: Any, handshake_s: float = 0.0) -> Callable[[], asyncio.BaseProtocol]:
        """What makes the protocol of each new connection, given aiohttp's server; `handshake_s` is TLS's."""
        loop, waiting = asyncio.get_running_loop(), set[Any]()

        def make() -> asyncio.BaseProtocol:
            here = server.connections
            waiting.difference_update(here)
            if len(here) + len(waiting) >= self._clients:
                return _Full(self._clients)
            protocol: asyncio.BaseProtocol = server()
            waiting.add(protocol)  # aiohttp counts it later, and many may be accepted before
            loop.call_later(handshake_s, waiting.discard, protocol)
            return protocol

        return make

    async def _admit(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        from aiohttp import web

        refusal = self._guard.refusal(request)
        if refusal is not None:
            refused = web.Response(status=refusal[0], text=refusal[1] + "\n")
            refused.force_close()
            return refused
        return await handler(request)

    async def _headers(self, request: Any, response: Any) -> None:
        response.headers.update(HEADERS)
        response.headers.pop("Server", None)

    # --- routes -------------------------------------------------------------------------------

    async def _index(self, request: Any) -> Any:
        from aiohttp import web

        if "token" in request.query:  # it does not stay in the address bar
            response = web.Response(status=303, headers={"Location": "/"})
            response.set_cookie(
                self._guard.cookie, self._guard.token, httponly=True, samesite="Strict", secure=request.secure
            )
            return response
        return web.Response(body=(_PAGE / "index.html").read_bytes(), content_type="text/html", charset="utf-8")

    async def _asset(self, request: Any) -> Any:
        from aiohttp import web

        name = request.path.strip("/")
        return web.Response(body=(_PAGE / name).read_bytes(), content_type=_ASSETS[name], charset="utf-8")

    async def _stream(self, request: Any) -> Any:
        from aiohttp import web

        source = request.query.get("source")
        response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=frame"})
        _small_buffer(request.transport)
        await response.prepare(request)
        self._pictures.viewers += 1
        try:
            await self._patiently(response.write(b"--frame\r\n"))
            await self._send_pictures(response, source)
        except TimeoutError:
            self._report(_address(request))
            request.transport.abort()
        except ConnectionError:
            pass
        finally:
            self._pictures.viewers -= 1
        return response

    async def _send_pictures(self, response: Any, source: str | None) -> None:
        sent = -1
        while not self._ending:
            new = self._new
            name = source or next(iter(self._pictures.sources()), "")
            # A page that comes between two pictures, or after the last one, still sees something.
            picture = self._pictures.last(name) if sent >= 0 else await asyncio.to_thread(self._pictures.jpeg, name)
            if picture is not None and picture[0] != sent:
                sent = picture[0]
                await self._patiently(response.write(_PART % (len(picture[1]), *picture)))
            else:
                await new.wait()

    async def _events(self, request: Any) -> Any:
        from aiohttp import web

        socket_ = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES, compress=False, timeout=0.2, autoping=True
        )
        await socket_.prepare(request)
        if request.transport is None:
            return socket_
        _small_buffer(request.transport)
        viewer = Viewer(request.transport, _address(request))
        for text in [self._greeting(viewer), *(text for _, text in sorted([*self._first.values(), *self._recent]))]:
            viewer.put(text)
        if self._ending or "summary" in self._first:
            viewer.put(None)
        self._viewers.add(viewer)
        sender = asyncio.create_task(self._send(socket_, viewer))
        try:
            await self._listen(socket_, viewer)
        finally:
            self._viewers.discard(viewer)
            sender.cancel()
            await asyncio.gather(sender, self.peers.end(viewer), return_exceptions=True)
        return socket_

    async def _listen(self, socket_: Any, viewer: Viewer) -> None:
        from aiohttp import WSMsgType

        rate = Rate(per_s=5, burst=20)
        async for message in socket_:
            if not rate.admits():
                await socket_.close(code=1008, message=b"too many messages")
                return
            if message.type is WSMsgType.TEXT:
                viewer.put(self._heard(message.data))

    async def _send(self, socket_: Any, viewer: Viewer) -> None:
        try:
            while (text := await viewer.queue.get()) is not None:
                await self._patiently(socket_.send_str(text))
            await socket_.close(code=1001, message=b"the run has ended")
        except TimeoutError:
            self._drop(viewer)
        except ConnectionError:
            viewer.transport.abort()

    async def _offer(self, request: Any) -> Any:
        """`{"viewer": …, "sdp": …}` of a page that follows the events, with the `source` that it wants to see or, as
        `send`, what it wants to send (`camera`, `mic`); answered by `{"sdp": …}`, with what is wanted of a sender."""
        from aiohttp import web

        try:
            async with asyncio.timeout(self._patience_s):
                document = document_of(await request.read())
            return web.json_response(await self._answer(document))
        except EdgemmError as error:
            return web.json_response({"error": error.as_dict()}, status=status_of(error))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None

    async def _answer(self, document: dict[str, Any]) -> dict[str, Any]:
        if not self._rtc:
            raise missing_extra("aiortc", "webrtc") if not available() else Unavailable("this run is not in real time")
        viewer = next((one for one in self._viewers if one.id == document.get("viewer")), None)
        source, names, offer = document.get("source"), document.get("send"), document.get("sdp")
        if viewer is None or not isinstance(offer, str):
            raise InputError("the offer is not that of an open page", hint="reload the page")

        def gone() -> bool:
            return self._ending or viewer not in self._viewers

        if isinstance(source, str):
            return {"sdp": await self.peers.answer(viewer, source, offer, gone)}
        if not isinstance(names, list) or not names or not all(name in ("camera", "mic") for name in names):
            raise InputError("the offer says neither what to see nor what is sent", hint="reload the page")
        if refusal := next(filter(None, map(self.senders.refusal, names)), None):
            raise Unavailable(refusal)
        return {"sdp": await self.peers.receive(viewer, names, self.senders, offer, gone), **wish()}

    # --- messages -----------------------------------------------------------------------------

    def _greeting(self, viewer: Viewer | None = None) -> str:
        """What a page is told of the run; with `viewer`, the name by which that page may ask for WebRTC."""
        page = {"tasks": self._on, "ask": self._context.ask is not None, "sizes_px": self._pictures.sizes_px}
        return json.dumps({"page": {**page, "viewer": viewer.id} if viewer and self._rtc else page})

    def size_changed(self) -> None:
        """A camera's pictures have another size than before."""
        self._send_all(self._greeting())

    def _heard(self, message: str) -> str:
        document = document_of(message)
        task, on = document.get("task"), document.get("on")
        if isinstance(task, str) and isinstance(on, bool):
            if task in self._on and self._context.switch(task, on):
                self._on[task] = on
                self._send_all(self._greeting())
            return self._greeting()
        return json.dumps(reply(document, self._context.ask), ensure_ascii=False)

    def _send_all(self, text: str) -> None:
        for viewer in list(self._viewers):
            if not viewer.put(text):
                self._drop(viewer)

    def _drop(self, viewer: Viewer) -> None:
        if viewer.dropped:
            return
        viewer.dropped = True
        self._viewers.discard(viewer)
        viewer.transport.abort()
        self._report(viewer.address)

    def _report(self, address: str) -> None:
        self._context.report(SinkError(
            f"a viewer of the live page ({address}) did not keep up and was dropped",
            hint="open the page again",
        ))  # fmt: skip

    async def _patiently(self, work: Awaitable[None]) -> None:
        async with asyncio.timeout(self._patience_s):  # wait_for may lose a cancellation (Python 3.11)
            await work


class _Full(asyncio.Protocol):
    """Tells a connection that there is no room for it."""

    def __init__(self, clients: int) -> None:
        self._clients = clients

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        text = f"there are {self._clients} connections already\n".encode()
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(text), text)
        )
        transport.close()


def _small_buffer(transport: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


def _address(request: Any) -> str:
    return str(request.remote or "?")
