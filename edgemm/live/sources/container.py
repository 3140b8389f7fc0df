"""What files and network streams share: a container opened by PyAV, one stream of it decoded."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, Sound, TransientSourceError, Wish, redact

if TYPE_CHECKING:
    import av.container

JUMP_BACK_S = 0.5

_HINTS = {
    "source": "is it on, and reachable?",
    "source_auth": "check user, password and permissions",
    "source_not_found": "check the path",
    "source_refused": "check the address",
    "source_unreachable": "is it on, and is this its address and port?",
    "source_dns": "check the name, or give the IP address",
    "source_tls": "does it speak TLS at this port? Otherwise write http:// or rtsp://",
    "source_codec": "expected a media file or stream that FFmpeg reads",
    "source_timeout": "is it on, and reachable?",
}
_WHY = {
    "source_dns": "the name of the host is not known",
    "source_tls": "no TLS connection comes about",
}
# Asking again cannot help where the answer was no.
_FINAL = frozenset({"source_auth", "source_not_found", "source_refused", "source_tls", "source_codec"})
_UNREACHABLE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})


class Tap(Protocol):
    """Is shown a container's packets as they are decoded."""

    def begin(self, container: Container) -> None:
        """The container is open."""

    def before(self, packet: Any) -> None:
        """This packet is decoded next."""

    def after(self, packet: Any) -> None:
        """It was decoded; it is not needed any more."""


class Container:
    """Opens an address for one kind of stream ("video" or "audio") and demuxes it.

    `choices` are the keyword arguments of `av.open` to try in turn. `live` decides whether the
    end and time-outs are transient. `decode_errors` counts packets that could not be decoded.
    """

    def __init__(self, address: str, media: str, choices: tuple[dict[str, Any], ...], *, live: bool) -> None:
        self.decode_errors = 0
        self.start_s = 0.0
        self._address, self._media, self._choices, self._live = address, media, choices, live
        self._container: av.container.InputContainer | None = None
        self.stream: Any = None

    def open(self) -> None:
        """Raises SourceError in one clean sentence, TransientSourceError where it may come."""
        import av

        for number, choice in enumerate(self._choices, 1):
            began_s, (limit_s, _) = time.monotonic(), choice.get("timeout", (float("inf"), 0.0))
            try:
                self._container = av.open(self._address, **choice)
                break
            except (av.error.FFmpegError, OSError, ValueError) as error:
                # FFmpeg calls its own time-out invalid data, or an input/output error, as it happens
                if time.monotonic() - began_s >= limit_s:
                    self._fail(TimeoutError(f"no answer for {limit_s:.0f} s"))
                if number == len(self._choices) or code_of(error) not in ("source", "source_codec"):
                    self._fail(error)
        self._choose_stream()

    def _choose_stream(self) -> None:
        container = self._container
        assert container is not None
        streams = [stream for stream in container.streams if stream.type == self._media]
        if not streams or streams[0].codec_context is None:
            found = ", ".join(sorted({str(stream.type) for stream in container.streams})) or "none"
            self.close()
            raise SourceError(
                f"{redact(self._address)} has no {self._media} stream (streams found: {found})", code="source_codec"
            )
        self.stream = streams[0]
        if self.stream.codec_context.name == "mjpeg":
            # half a JPEG would otherwise come out as a picture that is half grey
            self.stream.codec_context.options = {"err_detect": "explode"}
        if self._live:
            self.stream.codec_context.thread_count = 1
            self.stream.codec_context.flags |= 0x80000  # low delay: frames out as they come in
        else:
            self.stream.thread_type = "AUTO"
            start = container.start_time
            self.start_s = start / 1_000_000 if start is not None else 0.0

    @property
    def live(self) -> bool:
        """Whether its end and time-outs are transient."""
        return self._live

    @property
    def duration_s(self) -> float | None:
        """How long the container says it is, None where it does not say (live streams)."""
        container = self._container
        if container is None or not container.duration or container.duration <= 0:
            return None
        return float(container.duration) / 1_000_000

    def packets(self) -> Iterator[Any]:
        """The stream's packets; a live stream does not end but raises TransientSourceError."""
        import av

        assert self._container is not None
        demuxed = self._container.demux(self.stream)
        while True:
            try:
                packet = next(demuxed, None)
            except av.error.InvalidDataError:
                self.decode_errors += 1
                continue
            except (av.error.FFmpegError, OSError) as error:
                self._fail(error)
            if packet is None or (packet.size == 0 and self._live):
                break
            yield packet
        if self._live:
            raise TransientSourceError(f"{redact(self._address)} ended the stream")

    def frames(self, tap: Tap | None = None) -> Iterator[Any]:
        """Decoded frames; packets that cannot be decoded are counted and skipped."""
        import av

        for packet in self.packets():
            frames = []
            if tap is not None:
                tap.before(packet)
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.decode_errors += 1
            if tap is not None:
                tap.after(packet)
            yield from frames

    def close(self) -> None:
        """Closes the container; called by the thread that reads it."""
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _cause(self, error: Exception) -> str:
        """The error code of a failure."""
        return code_of(error)

    def _fail(self, error: Exception) -> NoReturn:
        code = self._cause(error)
        address = redact(self._address)
        why = _WHY.get(code) or redact(getattr(error, "strerror", "") or str(error))
        if isinstance(error, FileNotFoundError):
            raise SourceError(f"{address} does not exist", code=code) from None
        said = f"{address} cannot be read: {why}"
        if code in ("source_auth", "source_not_found", "source_refused"):
            said = f"{address} refuses: {why}"
        elif code == "source_codec":
            said = f"{address} holds no {self._media} that can be decoded: {why}"
        final = not self._live or code in _FINAL
        raise (SourceError if final else TransientSourceError)(said, hint=_HINTS[code], code=code) from None


def code_of(error: Exception) -> str:
    """The error code of what PyAV raises; "source" where FFmpeg does not tell."""
    import av

    if isinstance(error, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, PermissionError)):
        return "source_auth"
    if isinstance(error, (av.error.HTTPNotFoundError, FileNotFoundError)):
        return "source_not_found"
    if isinstance(error, av.error.HTTPClientError):
        return "source_refused"
    if isinstance(error, (av.error.ExitError, TimeoutError)):
        return "source_timeout"
    if isinstance(error, (av.error.InvalidDataError, av.error.DecoderNotFoundError, ValueError)):
        return "source_codec"
    return "source_unreachable" if getattr(error, "errno", None) in _UNREACHABLE else "source"


class TimeLine:
    """Media times that never go back far: where the time stamps begin anew (a spliced film, a counter that ran
    over), what follows is placed after what was."""

    def __init__(self) -> None:
        self.empty = True
        self._shift_s = self._last_s = self._end_s = 0.0

    def place(self, t_s: float | None, length_s: float) -> float:
        """The time of a piece with this time stamp (None: it follows on the one before); `length_s` is about as
        long as it lasts."""
        placed_s = self._end_s if t_s is None else t_s + self._shift_s
        if not self.empty and placed_s < self._last_s - JUMP_BACK_S:
            self._shift_s += self._end_s - placed_s
            placed_s = self._end_s
        self.empty, self._last_s, self._end_s = False, placed_s, placed_s + length_s
        return placed_s


class ContainerVideo:
    """Pictures of a container, scaled on the way to RGB where a size is wished. A `tap`, set before it is opened, is
    shown the packets; `origin` is then the last picture's packet number and quarter turns."""

    def __init__(self, container: Container, wish: Wish) -> None:
        self.tap: Tap | None = None
        self.origin: tuple[int, int] | None = None
        self._container, self._wish = container, wish
        self._frames: Iterator[Any] = iter(())
        self._times = TimeLine()
        self._step_s = 1 / 30

    @property
    def decode_errors(self) -> int:
        """Packets that could not be decoded."""
        return self._container.decode_errors

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        self._container.open()
        rate = self._container.stream.average_rate
        self._step_s = 1 / float(rate) if rate else 1 / 30
        if self.tap is not None:
            self.tap.begin(self._container)
        self._frames = self._container.frames(self.tap)

    def read(self) -> Picture | None:
        """The next picture with its media time (0 is the start of the container)."""
        frame = next(self._frames, None)
        if frame is None:
            if self._times.empty:
                self._container._fail(ValueError("no picture could be decoded"))
            return None
        self.origin = None if self.tap is None or frame.opaque is None else (frame.opaque, turns_of(frame))
        t_s = None if frame.time is None else float(frame.time) - self._container.start_s
        return to_rgb(frame, self._wish.size_px), self._times.place(t_s, self._step_s)

    def close(self) -> None:
        """Closes the container."""
        self._container.close()


class ContainerAudio:
    """Sound of a container at its own rate, channels averaged."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._frames: Iterator[Any] = iter(())
        self._times = TimeLine()

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        self._container.open()
        self._frames = self._container.frames()

    def read(self) -> Sound | None:
        """The next piece of sound with its media time."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        samples, rate_hz = to_mono(frame), int(frame.sample_rate)
        t_media_s = None
        if frame.time is not None:
            t_media_s = self._times.place(float(frame.time) - self._container.start_s, len(samples) / rate_hz)
        return Sound(samples, rate_hz, t_media_s=t_media_s)

    def close(self) -> None:
        """Closes the container."""
        self._container.close()


def turns_of(frame: Any) -> int:
    """How many quarter turns an av.VideoFrame needs to be upright, as its file says."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def to_rgb(frame: Any, size_px: tuple[int, int] | None, turns: int | None = None) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an av.VideoFrame, upright after so many quarter turns (None: as its file says)."""
    turns = turns_of(frame) if turns is None else turns
    width, height = size_px or (None, None)
    if turns % 2:
        width, height = height, width
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def to_mono(frame: Any) -> NDArray[np.float32]:
    """float32 [samples] in -1…1 of an av.AudioFrame: the mean of its channels."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        data = (data.astype(np.float32) - 128) / 128
    elif np.issubdtype(data.dtype, np.integer):
        data = data / np.float32(-float(np.iinfo(data.dtype).min))
    return np.asarray(data.mean(axis=0), np.float32)
