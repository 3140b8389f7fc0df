"""What a source is: a thin blocking reader, and what the registry knows about its kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError

Picture = tuple[NDArray[np.uint8], float | None]
T_co = TypeVar("T_co", covariant=True)


class TransientSourceError(SourceError):
    """The source is not there now but may come (back): opening it again makes sense."""


class Reader(Protocol[T_co]):
    """Blocking access to one source, used by one thread. `open` may be called once. A reader that can wait for
    ever has a method `interrupt`, which lets `read` go, whatever thread it is called from.

    `read` returns None when the source has come to its end for good. Both raise
    TransientSourceError where trying again may help and SourceError where it cannot.
    """

    def open(self) -> None:
        """Opens the source; blocks for as long as that takes."""

    def read(self) -> T_co | None:
        """The next item; blocks until there is one."""

    def close(self) -> None:
        """Gives everything back; never raises, may be called without `open`."""


class VideoReader(Reader[Picture], Protocol):
    """Reads (uint8 [H, W, 3] RGB, the source's time stamp in seconds or None)."""


@dataclass(frozen=True, eq=False)
class Sound:
    """A stretch of sound as a reader gives it: float32 [samples], mono, -1…1.

    `t_media_s` is the source's own time stamp of the first sample, `t_monotonic_s` the reading
    of `time.monotonic()` when it was recorded: files have the first, microphones the second.
    `lost` says that the device dropped sound of unknown length just before.
    """

    samples: NDArray[np.float32]
    rate_hz: int
    t_media_s: float | None = None
    t_monotonic_s: float | None = None
    lost: bool = False


class AudioReader(Reader[Sound], Protocol):
    """Reads sound at the source's own rate, in pieces of any length."""


@dataclass(frozen=True)
class Encoded:
    """A picture as its source encodes it: `codec` is jpeg, h264 or h265 (Annex B), `order_s` its
    time in decoding order where that differs from the order of the times."""

    data: bytes
    codec: str
    t_media_s: float | None
    order_s: float | None = None


@dataclass(frozen=True)
class Wish:
    """What was asked for. (width, height) in pixels; None: what the source gives by itself."""

    size_px: tuple[int, int] | None = None
    fps: float | None = None


@dataclass(frozen=True)
class SourceKind:
    """One line of the registry.

    `accepts` is how the kind is written, for people. `matches` decides by the text (and a look
    at the disk) whether a spec is of this kind. `live` sources are watched and reopened, others
    are paced and end. `encoded` reads pictures as the source encodes them. `probe` says cheaply
    whether a lost source may be back. `lasting` gives a spec of the same device that still means it
    after a replug. `honours_fps`: the reader itself keeps to the wished rate.
    `waits`: it gives its first item when a person wants it, however long that takes.
    """

    name: str
    accepts: str
    matches: Callable[[str], bool]
    live: bool
    video: Callable[[str, Wish], VideoReader] | None = None
    audio: Callable[[str], AudioReader] | None = None
    encoded: Callable[[str], Reader[Encoded]] | None = None
    probe: Callable[[str], bool] | None = None
    lasting: Callable[[str], str] | None = None
    honours_fps: bool = False
    waits: bool = False

    def lasting_spec(self, spec: str) -> str:
        """The spec to open, now and after every loss: /dev/videoN may be another camera after a replug."""
        return self.lasting(spec) if self.lasting else spec


_USER = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]*)@")
_QUERY = re.compile(r"(?i)\b((?:[\w-]*(?:pass|pwd|token|secret|key|auth)[\w-]*)=)[^&\s'\"]+")


def redact(text: str) -> str:
    """The text with every password in a URL replaced by ***."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1:***@", text))


def origin_of(reader: object) -> tuple[int, int] | None:
    """The number of the packet that the reader's last picture was decoded from and the picture's quarter turns; None
    where its packets are not recorded."""
    origin: tuple[int, int] | None = getattr(reader, "origin", None)
    return origin


def decode_errors(reader: object) -> int:
    """How many broken pictures the reader has skipped since it was opened."""
    return int(getattr(reader, "decode_errors", 0))


def interrupt(reader: object) -> None:
    """Lets go a reader that can be: its `read` then returns or raises."""
    let_go = getattr(reader, "interrupt", None)
    if let_go is not None:
        let_go()
