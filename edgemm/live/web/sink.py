"""The sink that serves the live page."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgemm.errors import UsageError, missing_extra
from edgemm.live.events import Event, to_json
from edgemm.live.frames import Frame
from edgemm.live.sinks.address import cannot_serve, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.live.sinks.websocket import TOKEN_VARIABLE
from edgemm.live.sources.browser import CAMERA, MICROPHONE
from edgemm.live.web.guard import Guard, server_log
from edgemm.live.web.pictures import Pictures
from edgemm.live.web.rtc import workers
from edgemm.live.web.server import Server

PORT = 8080
# A connection that has asked for nothing for so long is closed.
IDLE_S = 10.0
HANDSHAKE_S = 5.0


class WebSink:
    """Serves the run at `http://ADDRESS/`: pictures, events, questions, and `browser://` sources.

    `address` is `host:port`, `:port` (all interfaces) or `port`. On loopback no token is needed unless one is given;
    elsewhere it is `token`, the variable EDGEMM_SINK_TOKEN, or made up, and stands in `url`. `cert` and `key` are PEM
    files for TLS. At most `clients` connections; a viewer that takes nothing for `patience_s` is dropped and reported.
    `on_ready(url)` is called in the sink's thread when the page is there. A port that is taken ends the run; later
    failures do not. Raises UsageError, and RuntimeUnavailable without the extra `web`.
    """

    limits = SinkLimits(events=4096, frames=2, latest=frozenset({"stats"}))

    def __init__(
        self,
        address: str = f"127.0.0.1:{PORT}",
        *,
        token: str | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        clients: int = 64,
        patience_s: float = 3.0,
        on_ready: Callable[[str], None] = lambda url: None,
    ) -> None:
        if importlib.util.find_spec("aiohttp") is None:
            raise missing_extra("aiohttp", "web")
        self._tls = _tls(cert, key)
        scheme = "https" if self._tls else "http"
        self._url = parse(f"{scheme}://{_whole(address)}", port=PORT, host="0.0.0.0")
        if self._url.path or self._url.user is not None or not self._url.host:
            raise UsageError(f"--web takes HOST:PORT, not {address!r}", hint=f"such as 127.0.0.1:{PORT}")
        self.name = self._url.shown
        self.essential = True  # until it is open
        given = token or os.environ.get(TOKEN_VARIABLE, "")
        self._token = given or ("" if self._url.loopback else secrets.token_urlsafe(16))
        self._clients, self._patience_s, self._on_ready = clients, patience_s, on_ready
        self.pictures = Pictures()
        self._sizes_px: dict[str, tuple[int, int]] = {}
        self._ready: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is served; waits until there is one. Raises SinkError."""
        return self._ready.result()

    @property
    def url(self) -> str:
        """The address to open, with the token if there is one; waits until it is served."""
        host = _reachable(self._url.host)
        query = f"?token={quote(self._token)}" if self._token else ""
        return f"{self._url.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/{query}"

    def open(self, context: SinkContext) -> None:
        """Serves from now on. Raises SinkError where the address cannot be had."""
        self._context = context
        self._thread = threading.Thread(target=self._serve, name="edgemm-page", daemon=True)
        self._thread.start()
        self._ready.result()
        self.essential = False
        CAMERA.serve(True)
        MICROPHONE.serve(True)
        self._on_ready(self.url)

    def handle(self, item: Item) -> None:
        """Hands an event or a picture to every viewer. As fast as possible, it waits for viewers that keep up."""
        if isinstance(item, Event):
            text = json.dumps(to_json(item), ensure_ascii=False)
            self._call(self._server.publish(item, text))
        elif isinstance(item, Frame):
            new = self.pictures.take(item)
            if self.pictures.sizes_px != self._sizes_px:
                self._sizes_px = dict(self.pictures.sizes_px)
                self._loop.call_soon_threadsafe(self._server.size_changed)
            if new:
                self._loop.call_soon_threadsafe(self._server.picture)
            if self._server.peers.viewers:
                self._loop.call_soon_threadsafe(self._server.peers.picture, item)

    def close(self) -> None:
        """Ends every connection; what waits is sent within half a second, or a tenth where the run is broken off."""
        CAMERA.serve(False)
        MICROPHONE.serve(False)
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _serve(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # whatever it is, `open` must not hang
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _main(self) -> None:
        from aiohttp import web

        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(workers())
        # Named by the port: browsers send a host's cookies to all of its ports.
        guard = Guard(self._url.host, self._token, f"edgemm-{self._url.port}")
        self._server = Server(self._context, guard, self.pictures, clients=self._clients, patience_s=self._patience_s)
        runner = web.AppRunner(
            self._server.application(),
            access_log=None,
            logger=server_log(),
            shutdown_timeout=0.1,
            lingering_time=0,
            keepalive_timeout=IDLE_S,
        )
        await runner.setup()
        try:
            await self._until_the_end(runner)
        finally:
            await runner.cleanup()

    async def _until_the_end(self, runner: Any) -> None:
        try:
            listening = await self._listen(runner)
        except OSError as error:
            raise cannot_serve(self.name, error) from error
        self._ready.set_result(listening.sockets[0].getsockname()[1])
        await self._end.wait()
        listening.close()
        await self._server.end(0.1 if self._context.stopping() else 0.5)

    async def _listen(self, runner: Any) -> asyncio.Server:
        tls_s = HANDSHAKE_S if self._tls else None
        protocols = self._server.protocols(runner.server, tls_s or 0.0)
        return await self._loop.create_server(
            protocols, self._url.host, self._url.port, ssl=self._tls, ssl_handshake_timeout=tls_s, backlog=128
        )


def _whole(address: str) -> str:
    """`8080` and `:8080` as well as host:port."""
    text = address.strip().removeprefix("http://").removeprefix("https://").rstrip("/")
    return f":{text}" if text.isdecimal() else text


def _tls(cert: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None:
        raise UsageError("a key without a certificate", hint="give --web-cert CERT.pem too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"{cert} cannot be used for TLS: {error.strerror or error}",
            hint="give --web-cert CERT.pem and --web-key KEY.pem, without a passphrase",
        ) from error
    return context


def _reachable(host: str) -> str:
    """A host that another machine can open: where all interfaces are served, that of the way out."""
    if host not in ("0.0.0.0", "::"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])
    return socket.gethostname()
