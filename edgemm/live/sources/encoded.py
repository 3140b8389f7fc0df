"""Pictures as the source itself encodes them, for recordings: no decoding, no second loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgemm.live.mcap_file import encode_jpeg
from edgemm.live.sources.base import Encoded, Picture, Reader
from edgemm.live.sources.container import Container, to_rgb

_OWN = {"h264": "h264", "hevc": "h265", "mjpeg": "jpeg"}
_TO_ANNEX_B = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
_START_CODES = (b"\x00\x00\x00\x01", b"\x00\x00\x01")


class EncodedContainer:
    """The packets of a container from its first key frame on; codecs that a recording does not
    know are decoded and stored as JPEG."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._pictures: Iterator[Encoded] = iter(())

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        self._container.open()
        name = self._container.stream.codec_context.name
        self._pictures = self._own(name) if name in _OWN else self._foreign()

    def read(self) -> Encoded | None:
        """The next picture in decoding order."""
        return next(self._pictures, None)

    def close(self) -> None:
        """Closes the container."""
        self._container.close()

    def _own(self, name: str) -> Iterator[Encoded]:
        codec, started = _OWN[name], False
        parameters = bytes(self._container.stream.codec_context.extradata or b"")
        for packet in self._annex_b(name, parameters):
            started = started or packet.is_keyframe or codec == "jpeg"
            if not started:
                continue
            data = bytes(packet)
            if codec != "jpeg" and packet.is_keyframe:
                data = _with_parameters(data, codec, parameters)
            base = packet.time_base
            pts = packet.pts if packet.pts is not None else packet.dts
            dts = packet.dts if packet.dts is not None else pts
            start_s = self._container.start_s
            t_media_s = None if pts is None else float(pts * base) - start_s
            order_s = None if dts is None else float(dts * base) - start_s
            yield Encoded(data, codec, t_media_s, order_s)

    def _annex_b(self, name: str, parameters: bytes) -> Iterator[Any]:
        packets = (packet for packet in self._container.packets() if packet.size)
        if name not in _TO_ANNEX_B or not parameters or parameters.startswith(_START_CODES):
            yield from packets
            return
        from av.bitstream import BitStreamFilterContext

        bits = BitStreamFilterContext(_TO_ANNEX_B[name], self._container.stream)
        for packet in packets:
            yield from bits.filter(packet)
        yield from bits.filter(None)

    def _foreign(self) -> Iterator[Encoded]:
        for frame in self._container.frames():
            t_media_s = None if frame.time is None else frame.time - self._container.start_s
            yield Encoded(encode_jpeg(to_rgb(frame, None)), "jpeg", t_media_s)


class EncodedPictures:
    """A reader of pixels, encoded as JPEG."""

    def __init__(self, reader: Reader[Picture]) -> None:
        self._reader = reader

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        self._reader.open()

    def read(self) -> Encoded | None:
        """The next picture."""
        picture = self._reader.read()
        return None if picture is None else Encoded(encode_jpeg(picture[0]), "jpeg", picture[1])

    def close(self) -> None:
        """Closes the reader."""
        self._reader.close()


def _with_parameters(data: bytes, codec: str, parameters: bytes) -> bytes:
    """A key frame that can be decoded alone: with the stream's parameter sets before it.

    RTSP cameras may send those only in the session's description.
    """
    has = b"\x00\x00\x01" in data and any(_is_parameter_set(data, at, codec) for at in _starts(data))
    return data if has or not parameters.startswith(_START_CODES) else parameters + data


def _starts(data: bytes) -> Iterator[int]:
    at = data.find(b"\x00\x00\x01")
    while 0 <= at < len(data) - 3:
        yield at + 3
        at = data.find(b"\x00\x00\x01", at + 3)


def _is_parameter_set(data: bytes, at: int, codec: str) -> bool:
    if codec == "h264":
        return data[at] & 0x1F == 7
    return (data[at] >> 1) & 0x3F == 33
