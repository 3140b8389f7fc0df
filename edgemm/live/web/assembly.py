"""From the RTP packets of one track to its decoder, in the place of aiortc's jitter buffer and queue.

Nothing is played here, so nothing needs to be held back: a picture is decoded when its own last packet is there, and
sound as it comes. What is held, and for how long, has bounds.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgemm.errors import RuntimeUnavailable
from edgemm.live.sources.browser import PICTURE_BYTES, fits

# What waits for a decoder: half a second of pictures, a second of sound.
WAITING = {"video": 8, "audio": 50}
# For how many packets, and how long, a missing one is waited for. A page sends one of a picture again when it is asked,
# but none of sound: that may be overtaken by few.
HELD = {"video": 512, "audio": 4}
HELD_S = 0.25
# A packet that is older than that by its number begins another numbering (RFC 3550, A.1).
OLDEST = 100

# What a page is asked to send at least, for pictures of 640x480. aiortc takes a machine that is busy for a line that is
# full, down to where a page sends seconds too late; a page sends less by itself where packets are lost.
LEAST_BITS_PER_S = 500_000

_QUEUE, _WANTED, _BUFFER, _ESTIMATOR = _INSIDE = tuple(
    f"_RTCRtpReceiver__{name}"
    for name in ("decoder_queue", "decoder_error", "jitter_buffer", "remote_bitrate_estimator")
)


@dataclass(frozen=True)
class Encoded:
    """What a decoder of aiortc takes."""

    data: bytes
    timestamp: int


class Assembly:
    """Puts frames together for `waiting`, with RTP time stamps that count from the first packet's and do not wrap.

    `on_packet` is told of each packet's time stamp, whatever its place. Belongs to one event loop.
    """

    def __init__(self, kind: str, codec: Any, waiting: Waiting) -> None:
        self.on_packet: Callable[[int], None] = lambda timestamp: None
        self._video, self._most, self._codec, self._waiting = kind == "video", HELD[kind], codec, waiting
        self._held: dict[int, tuple[Any, float]] = {}
        self._began = False
        self._next = self._first = self._newest = self._bytes = 0
        self._parts: list[bytes] = []
        self._of: int | None = None

    def add(self, packet: Any) -> tuple[bool, None]:
        """Takes a packet that aiortc has received. There is never a frame for aiortc to pass on."""
        now_s = time.monotonic()
        if not self._began:
            self._began, self._next = True, packet.sequence_number
            self._first = self._newest = packet.timestamp
        self._newest += _difference(packet.timestamp, self._newest, 32)
        self.on_packet(self._newest - self._first)
        number = self._next + _difference(packet.sequence_number, self._next, 16)
        if number < self._next - OLDEST:
            self._held.clear()
            self._next = number
            self._lost()
        if number >= self._next:
            self._held.setdefault(number, (packet, now_s))
            self._go_on(now_s)
        return False, None

    def _go_on(self, now_s: float) -> None:
        """Passes on what is complete, and gives up what is missing for too long."""
        self._pass_on()
        while self._held:
            first = min(self._held)
            if max(self._held) - self._next < self._most and now_s - self._held[first][1] <= HELD_S:
                return
            self._next = first
            self._lost()
            self._pass_on()

    def _pass_on(self) -> None:
        while (held := self._held.pop(self._next, None)) is not None:
            self._next += 1
            if held[0].payload:  # others are padding
                self._join(held[0])

    def _join(self, packet: Any) -> None:
        timestamp = self._newest + _difference(packet.timestamp, self._newest, 32) - self._first
        if not self._video:
            self._waiting.put((self._codec, Encoded(packet._data, timestamp)))
            return
        if starts(packet.payload):
            self._parts, self._bytes, self._of = [], 0, timestamp
        if self._of is None:  # its beginning was lost
            return
        self._parts.append(packet._data)
        self._bytes += len(packet._data)
        if self._of != timestamp or self._bytes > PICTURE_BYTES:  # it has no end
            self._lost()
        elif packet.marker:
            self._waiting.put((self._codec, Encoded(b"".join(self._parts), timestamp)))
            self._parts, self._of = [], None

    def _lost(self) -> None:
        self._parts, self._of = [], None
        self._waiting.lost()


class Waiting(queue.Queue[Any]):
    """What waits for a decoder of aiortc. A whole VP8 picture replaces all that waits; where `WAITING` do, and after
    pictures that were lost or are too large, others are left out until a whole one comes, which is asked for by
    `wanted`. `came` is set by everything that comes."""

    def __init__(self, kind: str, wanted: threading.Event) -> None:
        super().__init__()
        self._most, self._video, self._wanted = WAITING[kind], kind == "video", wanted
        self._broken, self._over = self._video, False
        self.came = threading.Event()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Takes (codec, encoded frame), or None, after which the decoder ends. Never waits."""
        if self._over:
            return
        self.came.set()
        if item is None or (self._video and is_whole(item[1].data)):
            with self.mutex:
                self.queue.clear()
            self._over = item is None
            self._broken = item is not None and not fits(vp8_size_px(item[1].data))
        elif self.qsize() >= self._most:
            self._broken = self._video
            if not self._video:
                return
        if self._broken:
            self._wanted.set()
        else:
            super().put(item)

    def lost(self) -> None:
        """Something is missing between what came and what will come."""
        if self._video:
            self._broken = True
            self._wanted.set()


class Estimate:
    """aiortc's estimate of the line's rate, but no less than `LEAST_BITS_PER_S`."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator

    def add(self, **packet: Any) -> tuple[int, list[int]] | None:
        """Takes a packet; where there is a new estimate, it and the streams that share it."""
        found: tuple[int, list[int]] | None = self._estimator.add(**packet)
        return None if found is None else (max(found[0], LEAST_BITS_PER_S), found[1])


def take_over(receiver: Any, kind: str, codec: Any) -> tuple[Assembly, Waiting]:
    """Puts them into a receiver of aiortc (1.16), which has no bounds of its own.

    Raises RuntimeUnavailable where aiortc's insides are not what they were.
    """
    if not all(hasattr(receiver, name) for name in _INSIDE):
        raise RuntimeUnavailable(
            "this version of aiortc cannot be used to receive", hint='pip install "aiortc==1.16.0"'
        )
    waiting = Waiting(kind, getattr(receiver, _WANTED))
    assembly = Assembly(kind, codec, waiting)
    setattr(receiver, _BUFFER, assembly)
    setattr(receiver, _QUEUE, waiting)
    if kind == "video":
        setattr(receiver, _ESTIMATOR, Estimate(getattr(receiver, _ESTIMATOR)))
    return assembly, waiting


def starts(payload: bytes) -> bool:
    """Whether the RTP payload is the first of a VP8 frame (RFC 7741, 4.2)."""
    return bool(payload) and payload[0] & 0x17 == 0x10


def is_whole(data: bytes) -> bool:
    """Whether a VP8 frame is a key frame (RFC 6386, 9.1)."""
    return bool(data) and not data[0] & 1


def vp8_size_px(data: bytes) -> tuple[int, int] | None:
    """Width and height of a VP8 key frame; None where it is none."""
    if not is_whole(data) or data[3:6] != b"\x9d\x01\x2a" or len(data) < 10:
        return None
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return width, height


def _difference(one: int, other: int, bits: int) -> int:
    """one - other on a counter of so many bits, from minus half of its range."""
    half = 1 << (bits - 1)
    return (one - other + half) % (2 * half) - half
