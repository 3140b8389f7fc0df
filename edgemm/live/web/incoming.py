"""A page's own camera and microphone by WebRTC, on their way into the pipeline (`browser://`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.live.sources.base import Sound
from edgemm.live.sources.browser import CAMERA, MICROPHONE
from edgemm.live.web.assembly import Waiting, take_over
from edgemm.live.web.capture import Senders

# In the order of an offer. Browsers must have both codecs (RFC 7742, RFC 7874).
KINDS = {"camera": "video", "mic": "audio"}
_CODECS = {"video": "video/VP8", "audio": "audio/opus"}
SOUND_CLOCK_HZ = 48_000  # RFC 7587, 4.1
# A packet that is lost is heard as silence; more is a gap, which ends an utterance.
FILLED_S = 0.1
LONGEST_GAP_S = 10.0
# Clocks of two devices differ by less.
DRIFT = 1e-3


class Incoming:
    """The tracks of one page. It is their sender from the first picture or sound until another page is, or `stop`."""

    def __init__(self, names: Sequence[str], senders: Senders) -> None:
        self._names = [name for name in KINDS if name in names]
        self.kinds: Sequence[str] = [KINDS[name] for name in self._names]
        self.direction, self.over = "sendonly", False
        self._senders = senders
        self._receivers: list[Any] = []
        self._waiting: list[Waiting] = []
        self._stamps = Stamps()
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, connection: Any) -> None:
        """Before the offer is read. Raises RuntimeUnavailable where this aiortc cannot be bounded."""
        import aiortc

        # It warns of each picture that cannot be decoded, which anybody could send; a whole one is asked for anyway.
        logging.getLogger("aiortc.rtcrtpreceiver").setLevel(logging.ERROR)
        for kind in self.kinds:
            transceiver = connection.addTransceiver(kind, direction="recvonly")
            known = aiortc.RTCRtpReceiver.getCapabilities(kind).codecs
            codec = next(codec for codec in known if codec.mimeType == _CODECS[kind])
            transceiver.setCodecPreferences([codec])
            assembly, waiting = take_over(transceiver.receiver, kind, codec)
            if kind == "audio":
                assembly.on_packet = lambda timestamp: self._stamps.came(timestamp, time.monotonic())
            self._receivers.append(transceiver.receiver)
            self._waiting.append(waiting)

    def answered(self) -> None:
        """The tracks are there."""
        ways = {"camera": self._pictures, "mic": self._sound}
        for name, receiver in zip(self._names, self._receivers, strict=True):
            self._tasks.append(asyncio.create_task(self._follow(name, receiver.track, ways[name])))

    def alive(self) -> bool:
        """Whether pictures or sound came since this was last asked."""
        came = [waiting.came.is_set() for waiting in self._waiting]
        for waiting in self._waiting:
            waiting.came.clear()
        return any(came)

    def stop(self) -> None:
        """Nothing more is taken."""
        for task in self._tasks:
            task.cancel()

    async def _follow(self, name: str, track: Any, way: Callable[[int, Any, Any], Awaitable[None]]) -> None:
        from aiortc.mediastreams import MediaStreamError

        with contextlib.suppress(MediaStreamError):
            first = await track.recv()
            number = self._senders.begin(name, self._taken_over, lambda: None)
            try:
                await way(number, track, first)
            finally:
                self._senders.finish(name, number)

    async def _taken_over(self) -> None:
        self.over = True

    async def _pictures(self, number: int, track: Any, frame: Any) -> None:
        while CAMERA.put(number, partial(frame.to_ndarray, format="rgb24")):
            frame = await track.recv()

    async def _sound(self, number: int, track: Any, frame: Any) -> None:
        while True:
            samples = np.asarray(frame.to_ndarray(), np.float32).reshape(-1, len(frame.layout.channels))
            mono = samples.mean(axis=1, dtype=np.float32) / np.float32(32768)
            if not MICROPHONE.put(number, self._stamps.sound(mono, frame.pts)):
                return
            frame = await track.recv()


class Stamps:
    """When sound was recorded: by its RTP time stamps and the least time that any packet took to get here, however long
    it is on its way from there. Gaps of up to `FILLED_S` are filled with silence."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._offset_s: float | None = None
        self._now_s = 0.0

    def came(self, timestamp: int, now_s: float) -> None:
        """A packet whose sound begins at `timestamp` came at `now_s` (`time.monotonic()`)."""
        offset_s = now_s - timestamp / SOUND_CLOCK_HZ
        before_s = self._offset_s
        if before_s is not None and abs(offset_s - before_s) < LONGEST_GAP_S:
            offset_s = min(before_s + DRIFT * (now_s - self._now_s), offset_s)
        self._offset_s, self._now_s = offset_s, now_s

    def sound(self, samples: NDArray[np.float32], timestamp: int) -> Sound:
        """float32 [samples] at `SOUND_CLOCK_HZ` of a packet that came, which was sent when they were recorded."""
        assert self._offset_s is not None
        missing = 0 if self._next is None else timestamp - self._next
        anew = not 0 <= missing <= LONGEST_GAP_S * SOUND_CLOCK_HZ
        lost = anew or missing > FILLED_S * SOUND_CLOCK_HZ
        self._next = timestamp + len(samples)
        start_s = self._offset_s + (timestamp - len(samples)) / SOUND_CLOCK_HZ
        if missing and not lost:
            samples = np.concatenate((np.zeros(missing, np.float32), samples))
            start_s -= missing / SOUND_CLOCK_HZ
        return Sound(samples, SOUND_CLOCK_HZ, t_monotonic_s=start_s, lost=lost)
