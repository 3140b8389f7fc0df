"""The page's own camera and microphone, on their way into the pipeline (`browser://`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from edgemm.live.sinks.questions import document_of
from edgemm.live.sources.browser import CAMERA, MICROPHONE, PICTURE_BYTES, SPEC, Inbox, decoded, pcm
from edgemm.live.web.guard import Rate

SIZE_PX = (640, 480)
FPS = 15.0
SOUND_BYTES = 65_536
HEARTBEAT_S = 2.0
TAKEN_OVER = 4001
_RATES_HZ = range(8_000, 192_001)
_OPTIONS = {"camera": "--camera", "mic": "--mic"}
_INBOXES: dict[str, Inbox[Any]] = {"camera": CAMERA, "mic": MICROPHONE}


class Senders:
    """Who sends as `browser://`: of camera and microphone one page at a time each, the one that came last. It sends by
    WebRTC (incoming.py), or by the sockets `/camera` and `/mic`."""

    def __init__(self) -> None:
        self._wanted: dict[str, bool] = {}
        self._ends: dict[str, tuple[int, Callable[[], Coroutine[Any, Any, object]]]] = {}
        self._ending = set[asyncio.Task[object]]()

    def wanted(self, config: Mapping[str, Any]) -> None:
        """What the run takes from a browser, by the config of its `started` event."""
        self._wanted = {"camera": SPEC in config["cameras"], "mic": config["mic"] == SPEC}

    def refusal(self, name: str) -> str | None:
        """Why nobody may send `camera` or `mic`; None where somebody may."""
        if self._wanted.get(name):
            return None
        return f"this run takes none: start it with {_OPTIONS[name]} {SPEC}"

    def begin(self, name: str, end: Callable[[], Coroutine[Any, Any, object]], taken: Callable[[], None]) -> int:
        """The number with which a page puts into the inbox of `name` from now on; `end` is called when another page
        takes over, `taken` as `Inbox.connect` has it. The page before is ended after that, so that nothing is lost."""
        before = self._ends.get(name)
        number = _INBOXES[name].connect(taken)
        self._ends[name] = (number, end)
        if before is not None:
            task = asyncio.create_task(before[1]())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        return number

    def finish(self, name: str, number: int) -> None:
        """The page of that number sends no more."""
        _INBOXES[name].disconnect(number)
        if self._ends.get(name, (0,))[0] == number:
            del self._ends[name]

    async def camera(self, request: Any) -> Any:
        """JPEG pictures, a message each. The page is told the size and rate that are wanted, and again, with `taken`,
        for each picture that the pipeline took: that is when it sends the next one."""
        from aiohttp import WSMsgType

        loop, rate, work = asyncio.get_running_loop(), Rate(per_s=60, burst=60), set[asyncio.Task[None]]()

        def tell() -> None:
            work.add(asyncio.create_task(_tell(socket, taken=True)))

        def taken() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(tell)

        socket, number = await self._open("camera", request, PICTURE_BYTES, taken)
        try:
            await _tell(socket, taken=False)
            async for message in socket:
                if not rate.admits():
                    break
                work = {task for task in work if not task.done()}
                if message.type is WSMsgType.BINARY and not CAMERA.put(number, partial(decoded, message.data)):
                    break
        finally:
            self.finish("camera", number)
            await socket.close()
        return socket

    async def mic(self, request: Any) -> Any:
        """Sound: first `{"rate_hz": 16000}`, then 16-bit PCM, mono, little-endian, in messages of any length."""
        from aiohttp import WSMsgType

        rate_hz, rate = 16_000, Rate(per_s=200, burst=400)
        socket, number = await self._open("mic", request, SOUND_BYTES, lambda: None)
        try:
            async for message in socket:
                if not rate.admits():
                    break
                if message.type is WSMsgType.TEXT:
                    told = document_of(message.data).get("rate_hz")
                    rate_hz = told if isinstance(told, int) and told in _RATES_HZ else rate_hz
                elif message.type is WSMsgType.BINARY and not MICROPHONE.put(number, pcm(message.data, rate_hz)):
                    break
        finally:
            self.finish("mic", number)
            await socket.close()
        return socket

    async def _open(self, name: str, request: Any, message_bytes: int, taken: Callable[[], None]) -> tuple[Any, int]:
        """The page's socket and its number."""
        from aiohttp import web

        if (refusal := self.refusal(name)) is not None:
            raise web.HTTPConflict(text=refusal + "\n")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=message_bytes, compress=False, timeout=0.2)
        await socket.prepare(request)
        end = partial(socket.close, code=TAKEN_OVER, message=b"another page took over")
        return socket, self.begin(name, end, taken)


def wish() -> dict[str, float]:
    """The largest size and the rate of pictures that the run wants of a page."""
    width_px, height_px = CAMERA.wish.size_px or SIZE_PX
    return {"width_px": width_px, "height_px": height_px, "fps": CAMERA.wish.fps or FPS}


async def _tell(socket: Any, *, taken: bool) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):
        await socket.send_json({"taken": taken, **wish()})
