"""Events to WebSocket clients (RFC 6455): one JSON document a message, as `--json` prints them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import json
import logging
import os
import threading
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgemm.errors import SinkError, UsageError
from edgemm.live.events import Event, StatusEvent, to_json
from edgemm.live.sinks.address import cannot_serve, is_loopback, need, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.live.sinks.questions import document_of, reply

TOKEN_VARIABLE = "EDGEMM_SINK_TOKEN"

_BACKLOG = 4096
_CLOSE_S = 1.0
_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())


class WebSocketSink:
    """Serves `ws://host:port`, on loopback unless a host is named.

    A new client gets `started`, the last `status` of each source and the last `stats`, then every
    event. A client that answers no ping for `patience_s`, takes no byte for so long or has 4096
    messages waiting is dropped and reported; the others never wait for it. At most `clients` at once;
    what a client sends is at most `message_bytes`: `{"ask": "…"}`, answered by
    `{"asked": {"question_id": n}}` or `{"error": {…}}` to it alone.

    `?token=…` or the variable EDGEMM_SINK_TOKEN: every client must then give it (`Authorization:
    Bearer …`, or `?token=…`). Without one only loopback is served, and only to local pages and programs.
    A port that is taken ends the run; later failures do not.
    """

    limits = SinkLimits(events=4096)

    def __init__(
        self,
        url: str,
        *,
        clients: int = 16,
        message_bytes: int = 16_384,
        ping_s: float = 2.0,
        patience_s: float = 3.0,
    ) -> None:
        need("websockets.asyncio.server", "websockets")
        self._url = parse(url, port=8765, options=("token",))
        self.name = self._url.shown
        self.essential = True  # until it is open
        self._token = self._url.options.get("token") or os.environ.get(TOKEN_VARIABLE, "")
        if not self._url.loopback and not self._token:
            raise UsageError(
                f"{self.name} can be reached from other machines, so it needs a token",
                hint=f"add ?token=… or set {TOKEN_VARIABLE}",
            )
        self._max_clients, self._message_bytes = clients, message_bytes
        self._ping_s, self._patience_s = ping_s, patience_s
        self._ready: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._clients: dict[Any, asyncio.Queue[str | None]] = {}
        self._first: dict[str, str] = {}
        self._dropped: set[Any] = set()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is served; waits until there is one. Raises SinkError."""
        return self._ready.result()

    def open(self, context: SinkContext) -> None:
        """Serves from now on. Raises SinkError where the address cannot be had."""
        self._context = context
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="edgemm-ws", daemon=True)
        self._thread.start()
        self._ready.result()
        self.essential = False

    def handle(self, item: Item) -> None:
        """Hands an event to every client. As fast as possible, it waits for clients that keep up."""
        if isinstance(item, Event):
            text = json.dumps(to_json(item), ensure_ascii=False)
            asyncio.run_coroutine_threadsafe(self._publish(item, text), self._loop).result()

    def close(self) -> None:
        """Sends what waits, for `patience_s` at most, and ends every connection."""
        if self._thread is not None:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()

    # What follows runs in the event loop, in a thread of its own.

    async def _main(self) -> None:
        from websockets.asyncio.server import serve

        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await serve(
                self._client, self._url.host, self._url.port,
                process_request=self._admit, compression=None, logger=_LOG, server_header=None,
                max_size=self._message_bytes, max_queue=4, open_timeout=5.0, close_timeout=_CLOSE_S,
                ping_interval=self._ping_s, ping_timeout=self._patience_s,
            )  # fmt: skip
        except OSError as error:
            self._ready.set_exception(cannot_serve(self.name, error))
            return
        self._ready.set_result(next(iter(server.sockets)).getsockname()[1])
        async with server:
            await self._ending.wait()
            for queue in self._clients.values():
                queue.put_nowait(None)
            for _ in range(100):
                if not self._clients:
                    break
                await asyncio.sleep(self._patience_s / 100)

    def _admit(self, connection: Any, request: Any) -> Any:
        """None, or the answer that refuses a handshake."""
        if len(self._clients) >= self._max_clients:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"there are {self._max_clients} clients\n")
        if self._token:
            given = "".join(request.headers.get_all("Authorization")).removeprefix("Bearer ")
            given = given or parse_qs(urlsplit(request.path).query).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong token\n")
        elif not all(_is_local(value) for name in ("Host", "Origin") for value in request.headers.get_all(name)):
            # Any page in a browser of this machine could otherwise listen in.
            return connection.respond(HTTPStatus.FORBIDDEN, "only pages and programs of this machine\n")
        return None

    async def _client(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        if len(self._clients) >= self._max_clients:
            await connection.close(1013, "too many clients")
            return
        # One place more than is filled, for the end.
        queue: asyncio.Queue[str | None] = asyncio.Queue(_BACKLOG + len(self._first) + 1)
        for text in self._first.values():
            queue.put_nowait(text)
        self._clients[connection] = queue
        sender = asyncio.create_task(self._send(connection, queue))
        try:
            async for message in connection:
                await connection.send(json.dumps(reply(document_of(message), self._context.ask), ensure_ascii=False))
        except ConnectionClosed as closed:
            if closed.sent is not None and "ping timeout" in closed.sent.reason:
                self._drop(connection)
        finally:
            self._clients.pop(connection, None)
            self._dropped.discard(connection)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, connection: Any, queue: asyncio.Queue[str | None]) -> None:
        while (text := await queue.get()) is not None:
            try:
                await asyncio.wait_for(connection.send(text), self._patience_s)
            except TimeoutError:
                self._drop(connection)
                return
        await connection.close()

    async def _publish(self, event: Event, text: str) -> None:
        if event.type in ("started", "status", "stats"):
            key = f"status {event.source}" if isinstance(event, StatusEvent) else event.type
            self._first.pop(key, None)
            self._first[key] = text
        for connection, queue in list(self._clients.items()):
            if queue.qsize() >= _BACKLOG:
                self._drop(connection)
            elif connection not in self._dropped:
                queue.put_nowait(text)
        while self._context.media_time and any(q.qsize() > _BACKLOG // 2 for q in self._clients.values()):
            await asyncio.sleep(0.005)

    def _drop(self, connection: Any) -> None:
        if connection in self._dropped:
            return
        self._dropped.add(connection)
        self._clients.pop(connection, None)
        connection.transport.abort()
        host, port = (connection.remote_address or ("?", 0))[:2]
        self._context.report(SinkError(
            f"a client of {self.name} ({host}:{port}) did not keep up and was dropped",
            hint="read every message, then connect again",
        ))  # fmt: skip


def _is_local(header: str) -> bool:
    """Whether a Host or an Origin names this machine."""
    try:
        return is_loopback(urlsplit(header if "://" in header else f"//{header}").hostname or "")
    except ValueError:
        return False
