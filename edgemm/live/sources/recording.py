"""`file.mcap`: a recording, replayed with the pictures, the sound and the times it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.foxglove import AUDIO
from edgemm.live.mcap_file import FRAME, PICTURES, Message, outcome_of, read_about, read_messages
from edgemm.live.sources.base import Picture, Sound, Wish
from edgemm.live.sources.container import to_rgb

_CODECS = {"jpeg": "mjpeg", "h264": "h264", "h265": "hevc"}
_NS = Fraction(1, 1_000_000_000)


@dataclass(frozen=True)
class Decoded:
    """A picture of a recording, not yet converted. `packet` and `frame` are the numbers that a run's recording has."""

    picture: Any
    t_media_s: float
    packet: int | None
    frame: int | None

    def to_rgb(self, size_px: tuple[int, int] | None, turns: int = 0) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        return to_rgb(self.picture, size_px, turns)


class Decoding:
    """Decodes the pictures of one camera in order. `errors` counts what could not be decoded.

    Each opening of the recorded source is decoded by itself, and so is what follows a packet that is missing.
    """

    def __init__(self, path: str) -> None:
        self.errors = 0
        self._path = path
        self._decoder: Any = None
        self._codec = ""
        self._part: int | None = None
        self._last: int | None = None
        self._waits_for_key = False

    def decode(self, messages: Iterator[Message]) -> Iterator[Decoded]:
        """The pictures of these messages. Raises SourceError for a codec that no recording has."""
        import av

        for message in messages:
            body = message.body
            if body["format"] == "png":
                yield from self._frames(None, None)
                self._decoder = None
                yield self._png(message)
                continue
            if self._is_new(body):
                yield from self._frames(None, None)
                self._begin(body)
            self._last = body.get("packet")
            self._waits_for_key = self._waits_for_key and not body["key"]
            if self._waits_for_key:
                continue
            packet: Any = av.Packet(message.data)
            packet.pts = packet.dts = round(message.t_media_s * 1e9)
            packet.time_base = _NS
            packet.opaque = (body.get("packet"), body.get("frame"))
            yield from self._frames(packet, body.get("frame"))
        yield from self._frames(None, None)

    def _png(self, message: Message) -> Decoded:
        """By OpenCV: FFmpeg 8's decoder spoils every picture after its first where the first row is filtered."""
        import av
        import cv2

        bgr = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise SourceError(f"{self._path} holds a PNG that cannot be decoded")
        rgb = av.VideoFrame.from_ndarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), format="rgb24")
        return Decoded(rgb, message.t_media_s, None, message.body.get("frame"))

    def _is_new(self, body: dict[str, Any]) -> bool:
        return bool(
            self._decoder is None
            or body["format"] != self._codec
            or body.get("part") != self._part
            or (self._last is not None and body.get("packet") != self._last + 1)
        )

    def _begin(self, body: dict[str, Any]) -> None:
        import av
        from av.codec.context import Flags

        codec = body["format"]
        if codec not in _CODECS:
            raise SourceError(f"{self._path} holds {codec} pictures; expected jpeg, png, h264 or h265")
        decoder: Any = av.CodecContext.create(_CODECS[codec], "r")
        decoder.flags |= Flags.copy_opaque
        if codec == "jpeg":
            decoder.options = {"err_detect": "explode"}
        if body.get("low_delay"):
            decoder.thread_count = 1
            decoder.flags |= Flags.low_delay
        torn = self._part == body.get("part") and codec == self._codec and self._last is not None
        self._waits_for_key = torn and codec in ("h264", "h265")
        self._decoder, self._codec, self._part = decoder, codec, body.get("part")

    def _frames(self, packet: Any, number: int | None) -> Iterator[Decoded]:
        import av

        if self._decoder is None:
            return
        try:
            frames = self._decoder.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in frames:
            yield Decoded(frame, float(frame.pts * _NS), *(frame.opaque or (None, number)))


class RecordedVideo:
    """The pictures of the recording's first camera, at the times at which they were captured."""

    def __init__(self, path: str, wish: Wish) -> None:
        self._path, self._wish = path, wish
        self._decoding = Decoding(path)
        self._pictures: Iterator[Picture] = iter(())

    @property
    def decode_errors(self) -> int:
        """Packets that could not be decoded."""
        return self._decoding.errors

    def open(self) -> None:
        """Raises SourceError where it is no recording or has no pictures."""
        first, messages = _first_topic(self._path, PICTURES, "pictures")
        self._pictures = self._read(self._decoding.decode(messages), self._known(first.topic))

    def read(self) -> Picture | None:
        """The next picture with its time in the recording."""
        return next(self._pictures, None)

    def close(self) -> None:
        """Closes the file."""
        self._pictures = iter(())

    def _known(self, topic: str) -> dict[int, tuple[float, int]]:
        """By packet number, when its frame was captured and its quarter turns: packets of a file are read ahead."""
        if "wall_offset_s" not in read_about(self._path):
            return {}
        frames = (outcome_of(m) for m in read_messages(self._path, (FRAME,)) if m.topic == f"{topic}/frames")
        return {frame.origin[0]: (frame.t_capture_s, frame.origin[1]) for frame in frames if frame.origin is not None}

    def _read(self, pictures: Iterator[Decoded], known: dict[int, tuple[float, int]]) -> Iterator[Picture]:
        for item in pictures:
            t_s, turns = known.get(-1 if item.packet is None else item.packet, (item.t_media_s, 0))
            yield item.to_rgb(self._wish.size_px, turns), t_s


class RecordedAudio:
    """The sound of the recording's first microphone."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._messages: Iterator[Message] = iter(())

    def open(self) -> None:
        """Raises SourceError where it is no recording or has no sound."""
        _, self._messages = _first_topic(self._path, (AUDIO,), "sound")

    def read(self) -> Sound | None:
        """The next block with its time in the recording."""
        message = next(self._messages, None)
        if message is None:
            return None
        return Sound(samples_of(message), int(message.body["sample_rate"]), t_media_s=message.t_media_s)

    def close(self) -> None:
        """Closes the file."""
        self._messages = iter(())


def samples_of(message: Message) -> NDArray[np.float32]:
    """float32 [samples] of a message of sound."""
    return np.frombuffer(message.data, "<i2").astype(np.float32) / np.float32(32768)


def _first_topic(path: str, schemas: tuple[str, ...], what: str) -> tuple[Message, Iterator[Message]]:
    """The first message, and all messages of its topic (the first among them)."""
    first = next(read_messages(path, schemas), None)
    if first is None:
        raise SourceError(f"the recording {path} holds no {what}")
    messages = read_messages(path, schemas)
    return first, (m for m in messages if m.topic == first.topic)
