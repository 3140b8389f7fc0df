"""`file.mcap`: a recording, replayed with the pictures, the sound and the times it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from edgemm.errors import SourceError
from edgemm.live.mcap_file import AUDIO, PICTURES, Message, read_messages
from edgemm.live.sources.base import Picture, Sound, Wish
from edgemm.live.sources.container import to_rgb

_CODECS = {"jpeg": "mjpeg", "h264": "h264", "h265": "hevc"}
_NS = Fraction(1, 1_000_000_000)


class RecordedVideo:
    """The pictures of the recording's first camera."""

    def __init__(self, path: str, wish: Wish) -> None:
        self.decode_errors = 0
        self._path, self._wish = path, wish
        self._pictures: Iterator[Picture] = iter(())

    def open(self) -> None:
        """Raises SourceError where it is no recording or has no pictures."""
        first, messages = _first_topic(self._path, PICTURES, "pictures")
        self._pictures = self._decode(first.body["format"], messages)

    def read(self) -> Picture | None:
        """The next picture with its time in the recording."""
        return next(self._pictures, None)

    def close(self) -> None:
        """Closes the file."""
        self._pictures = iter(())

    def _decode(self, codec: str, messages: Iterator[Message]) -> Iterator[Picture]:
        import av

        if codec not in _CODECS:
            raise SourceError(f"{self._path} holds {codec} pictures; expected jpeg, h264 or h265")
        decoder: Any = av.CodecContext.create(_CODECS[codec], "r")
        if codec == "jpeg":
            decoder.options = {"err_detect": "explode"}
        for message in messages:
            packet = av.Packet(message.data())
            packet.pts = packet.dts = round(message.t_media_s * 1e9)
            packet.time_base = _NS
            yield from self._frames(decoder, packet)
        yield from self._frames(decoder, None)

    def _frames(self, decoder: Any, packet: Any) -> Iterator[Picture]:
        import av

        try:
            frames = decoder.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            self.decode_errors += 1
            return
        for frame in frames:
            yield to_rgb(frame, self._wish.size_px), float(frame.pts * _NS)


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
        samples = np.frombuffer(message.data(), "<i2").astype(np.float32) / np.float32(32768)
        return Sound(samples, int(message.body["sample_rate"]), t_media_s=message.t_media_s)

    def close(self) -> None:
        """Closes the file."""
        self._messages = iter(())


def _first_topic(path: str, schemas: tuple[str, ...], what: str) -> tuple[Message, Iterator[Message]]:
    """The first message, and all messages of its topic and schema (the first among them)."""
    first = next(read_messages(path, schemas), None)
    if first is None:
        raise SourceError(f"the recording {path} holds no {what}")
    messages = read_messages(path, schemas)
    return first, (m for m in messages if (m.topic, m.schema) == (first.topic, first.schema))
