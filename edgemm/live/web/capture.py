"""The page's own camera and microphone, on their way into the pipeline (`browser://`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from edgemm.live.sinks.questions import document_of
from edgemm.live.sources.browser import CAMERA, MICROPHONE, PICTURE_BYTES, SPEC, Inbox
from edgemm.live.web.guard import Rate

SIZE_PX = (640, 480)
FPS = 15.0
SOUND_BYTES = 65_536
HEARTBEAT_S = 2.0
TAKEN_OVER = 4001
_RATES_HZ = range(8_000, 192_001)


class Senders:
    """The sockets `/camera` and `/mic`: one page at a time each, the one that came last."""

    def __init__(self) -> None:
        self._wanted: dict[str, bool] = {}
        self._sockets: dict[str, Any] = {}

    def wanted(self, config: Mapping[str, Any]) -> None:
        """What the run takes from a browser, by the config of its `started` event."""
        self._wanted = {"camera": SPEC in config["cameras"], "mic": config["mic"] == SPEC}

    async def camera(self, request: Any) -> Any:
        """JPEG pictures, a message each. The page is told the size and rate that are wanted, and again, with `taken`,
        for each picture that the pipeline took: that is when it sends the next one."""
        from aiohttp import WSMsgType

        loop, rate, work = asyncio.get_running_loop(), Rate(per_s=60, burst=60), set[asyncio.Task[None]]()

        def taken() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: work.add(asyncio.create_task(_tell(socket, _wish(taken=True)))))

        socket, number = await self._open("camera", request, PICTURE_BYTES, lambda: CAMERA.connect(taken))
        try:
            await _tell(socket, _wish(taken=False))
            async for message in socket:
                if not rate.admits():
                    break
                work = {task for task in work if not task.done()}
                if message.type is WSMsgType.BINARY and not CAMERA.put(number, message.data):
                    break
        finally:
            await self._close("camera", socket, CAMERA, number)
        return socket

    async def mic(self, request: Any) -> Any:
        """Sound: first `{"rate_hz": 16000}`, then 16-bit PCM, mono, little-endian, in messages of any length."""
        from aiohttp import WSMsgType

        rate_hz, rate = 16_000, Rate(per_s=200, burst=400)
        socket, number = await self._open("mic", request, SOUND_BYTES, lambda: MICROPHONE.connect(lambda: None))
        try:
            async for message in socket:
                if not rate.admits():
                    break
                if message.type is WSMsgType.TEXT:
                    told = document_of(message.data).get("rate_hz")
                    rate_hz = told if isinstance(told, int) and told in _RATES_HZ else rate_hz
                elif message.type is WSMsgType.BINARY and not MICROPHONE.put(number, (rate_hz, message.data)):
                    break
        finally:
            await self._close("mic", socket, MICROPHONE, number)
        return socket

    async def _open(self, name: str, request: Any, message_bytes: int, connect: Callable[[], int]) -> tuple[Any, int]:
        """The page's socket and its number. It is connected before the page that it follows goes: nothing is lost."""
        from aiohttp import web

        if not self._wanted.get(name):
            option = {"camera": "--camera", "mic": "--mic"}[name]
            raise web.HTTPConflict(text=f"this run takes none: start it with {option} {SPEC}\n")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=message_bytes, compress=False, timeout=0.2)
        await socket.prepare(request)
        before = self._sockets.get(name)
        self._sockets[name] = socket
        number = connect()
        if before is not None:
            await before.close(code=TAKEN_OVER, message=b"another page took over")
        return socket, number

    async def _close(self, name: str, socket: Any, inbox: Inbox[Any], number: int) -> None:
        inbox.disconnect(number)
        if self._sockets.get(name) is socket:
            del self._sockets[name]
        await socket.close()


def _wish(*, taken: bool) -> dict[str, Any]:
    width_px, height_px = CAMERA.wish.size_px or SIZE_PX
    return {"taken": taken, "width_px": width_px, "height_px": height_px, "fps": CAMERA.wish.fps or FPS}


async def _tell(socket: Any, message: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        await socket.send_json(message)
