"""A page's own camera and microphone by WebRTC, on their way into the pipeline (`browser://`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import RuntimeUnavailable
from edgemm.live.sources.base import Sound
from edgemm.live.sources.browser import CAMERA, MICROPHONE, fits
from edgemm.live.web.capture import Senders

# In the order of an offer. Browsers must have both codecs (RFC 7742, RFC 7874).
KINDS = {"camera": "video", "mic": "audio"}
_CODECS = {"video": "video/VP8", "audio": "audio/opus"}
# What waits for a decoder: half a second of pictures, a second of sound.
WAITING = {"video": 8, "audio": 50}
# A packet that is lost is heard as silence; more is a gap, which ends an utterance.
FILLED_S = 0.1
LONGEST_GAP_S = 10.0
# Clocks of two machines differ by less.
DRIFT = 2e-4


class Incoming:
    """The tracks of one page. It is their sender from the first picture or sound until another page is, or `stop`."""

    def __init__(self, names: Sequence[str], senders: Senders) -> None:
        self._names = [name for name in KINDS if name in names]
        self.kinds: Sequence[str] = [KINDS[name] for name in self._names]
        self.direction, self.over = "sendonly", False
        self._senders = senders
        self._receivers: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, connection: Any) -> None:
        """Before the offer is read. Raises RuntimeUnavailable where this aiortc cannot be bounded."""
        import aiortc

        # It warns of each picture that cannot be decoded, which anybody could send; a whole one is asked for anyway.
        logging.getLogger("aiortc.rtcrtpreceiver").setLevel(logging.ERROR)
        for kind in self.kinds:
            transceiver = connection.addTransceiver(kind, direction="recvonly")
            known = aiortc.RTCRtpReceiver.getCapabilities(kind).codecs
            transceiver.setCodecPreferences([codec for codec in known if codec.mimeType == _CODECS[kind]])
            bound(transceiver.receiver, kind)
            self._receivers.append(transceiver.receiver)

    def answered(self) -> None:
        """The tracks are there."""
        ways = {"camera": self._pictures, "mic": self._sound}
        for name, receiver in zip(self._names, self._receivers, strict=True):
            self._tasks.append(asyncio.create_task(self._follow(name, receiver.track, ways[name])))

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
        stamps = Stamps()
        while True:
            samples = np.asarray(frame.to_ndarray(), np.float32).reshape(-1, len(frame.layout.channels))
            mono = samples.mean(axis=1, dtype=np.float32) / np.float32(32768)
            if not MICROPHONE.put(number, stamps.sound(mono, frame.sample_rate, frame.pts, time.monotonic())):
                return
            frame = await track.recv()


class Stamps:
    """When sound was recorded, by its RTP time stamps and the least time that any of it took to get here. Gaps of up to
    `FILLED_S` are filled with silence."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._offset_s = 0.0
        self._now_s = 0.0

    def sound(self, samples: NDArray[np.float32], rate_hz: int, pts: int, now_s: float) -> Sound:
        """float32 [samples] that begins at `pts` in samples and came at `now_s` (`time.monotonic()`)."""
        end = pts + len(samples)
        offset_s = now_s - end / rate_hz
        missing = 0 if self._next is None else pts - self._next
        anew = self._next is None or not 0 <= missing <= LONGEST_GAP_S * rate_hz
        self._offset_s = offset_s if anew else min(self._offset_s + DRIFT * (now_s - self._now_s), offset_s)
        lost = self._next is not None and (anew or missing > FILLED_S * rate_hz)
        self._next, self._now_s = end, now_s
        if missing and not lost:
            samples = np.concatenate((np.zeros(missing, np.float32), samples))
        start_s = self._offset_s + (end - len(samples)) / rate_hz
        return Sound(samples, rate_hz, t_monotonic_s=start_s, lost=lost)


def bound(receiver: Any, kind: str) -> None:
    """Bounds what waits for a receiver's decoder, which aiortc (1.16) does not, and what is decoded.

    Raises RuntimeUnavailable where aiortc's insides are not what they were.
    """
    inside = "_RTCRtpReceiver__decoder_queue", "_RTCRtpReceiver__decoder_error"
    if not all(hasattr(receiver, name) for name in inside):
        raise RuntimeUnavailable(
            "this version of aiortc cannot be used to receive", hint='pip install "aiortc==1.16.0"'
        )
    setattr(receiver, inside[0], Waiting(kind, getattr(receiver, inside[1])))


class Waiting(queue.Queue[Any]):
    """What waits for a decoder of aiortc. A whole VP8 picture replaces all that waits; where `WAITING` do, and after
    pictures that are too large, others are left out until a whole one comes, which is asked for by `wanted`."""

    def __init__(self, kind: str, wanted: threading.Event) -> None:
        super().__init__()
        self._most, self._video, self._wanted = WAITING[kind], kind == "video", wanted
        self._broken = self._video

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Takes (codec, encoded frame), or None, after which the decoder ends. Never waits."""
        if item is None or (self._video and is_whole(item[1].data)):
            with self.mutex:
                self.queue.clear()
            self._broken = item is not None and not fits(vp8_size_px(item[1].data))
        elif self.qsize() >= self._most:
            self._broken = self._video
            if not self._video:
                return
        if self._broken:
            self._wanted.set()
        else:
            super().put(item)


def is_whole(data: bytes) -> bool:
    """Whether a VP8 frame is a key frame (RFC 6386, 9.1)."""
    return bool(data) and not data[0] & 1


def vp8_size_px(data: bytes) -> tuple[int, int] | None:
    """Width and height of a VP8 key frame; None where it is none."""
    if not is_whole(data) or data[3:6] != b"\x9d\x01\x2a" or len(data) < 10:
        return None
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return width, height
