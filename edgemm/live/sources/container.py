"""What files and network streams share: a container opened by PyAV, one stream of it decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, Sound, TransientSourceError, Wish, redact

if TYPE_CHECKING:
    import av.container


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
            try:
                self._container = av.open(self._address, **choice)
                break
            except (av.error.InvalidDataError, ValueError) as error:
                if number == len(self._choices):
                    self._fail(error)
            except (av.error.FFmpegError, OSError) as error:
                self._fail(error)
        self._choose_stream()

    def _choose_stream(self) -> None:
        container = self._container
        assert container is not None
        streams = [stream for stream in container.streams if stream.type == self._media]
        if not streams or streams[0].codec_context is None:
            found = ", ".join(sorted({str(stream.type) for stream in container.streams})) or "none"
            self.close()
            raise SourceError(f"{redact(self._address)} has no {self._media} stream (streams found: {found})")
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

    def frames(self) -> Iterator[Any]:
        """Decoded frames; packets that cannot be decoded are counted and skipped."""
        import av

        for packet in self.packets():
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.decode_errors += 1

    def close(self) -> None:
        """Closes the container; called by the thread that reads it."""
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _fail(self, error: Exception) -> NoReturn:
        import av

        address, why = redact(self._address), redact(getattr(error, "strerror", "") or str(error))
        if isinstance(error, FileNotFoundError):
            raise SourceError(f"{address} does not exist") from None
        if isinstance(error, (av.error.HTTPClientError, PermissionError)):
            raise SourceError(f"{address} refuses: {why}", hint="check user, password and path") from None
        if isinstance(error, (av.error.InvalidDataError, ValueError)):
            raise SourceError(
                f"{address} holds no {self._media} that can be decoded: {why}",
                hint="expected a media file or stream that FFmpeg reads",
            ) from None
        kind = TransientSourceError if self._live else SourceError
        raise kind(f"{address} cannot be read: {why}", hint="is it on, and reachable?") from None


class ContainerVideo:
    """Pictures of a container, scaled on the way to RGB where a size is wished."""

    def __init__(self, container: Container, wish: Wish) -> None:
        self._container, self._wish = container, wish
        self._frames: Iterator[Any] = iter(())
        self._last_s: float | None = None
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
        self._frames = self._container.frames()

    def read(self) -> Picture | None:
        """The next picture with its media time (0 is the start of the container)."""
        frame = next(self._frames, None)
        if frame is None:
            if self._last_s is None:
                self._container._fail(ValueError("no picture could be decoded"))
            return None
        if frame.time is not None:
            t_media_s = float(frame.time) - self._container.start_s
        else:
            t_media_s = 0.0 if self._last_s is None else self._last_s + self._step_s
        self._last_s = t_media_s
        return to_rgb(frame, self._wish.size_px), t_media_s

    def close(self) -> None:
        """Closes the container."""
        self._container.close()


class ContainerAudio:
    """Sound of a container at its own rate, channels averaged."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._frames: Iterator[Any] = iter(())
        self._mono: Any = None

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        self._container.open()
        self._frames = self._container.frames()

    def read(self) -> Sound | None:
        """The next piece of sound with its media time."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        t_media_s = None if frame.time is None else float(frame.time) - self._container.start_s
        return Sound(to_mono(frame), int(frame.sample_rate), t_media_s=t_media_s)

    def close(self) -> None:
        """Closes the container."""
        self._container.close()


def to_rgb(frame: Any, size_px: tuple[int, int] | None) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an av.VideoFrame, upright (the file's rotation is applied)."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
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
