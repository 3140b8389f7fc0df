"""Pictures as the source itself encodes them, for recordings: no decoding, no second loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from edgemm.live.frames import Packet
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
        if not _is_packed(name, parameters):
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


class PacketTap:
    """Hands on the packets of one opening of a source as they are decoded, and numbers them.

    The decoder passes the number of a packet on to its frame. Codecs that a recording does not know are left alone.
    """

    def __init__(
        self,
        source: str,
        part: int,
        numbers: Iterator[int],
        hand_on: Callable[[Packet], None],
        now_s: Callable[[], float],
    ) -> None:
        self._source, self._part, self._numbers = source, part, numbers
        self._hand_on, self._now_s = hand_on, now_s
        self._codec: str | None = None
        self._parameters = b""
        self._bits: Any = None
        self._number = 0
        self._key, self._first = False, True
        self._container: Container | None = None
        self._start_s: float | None = None

    @staticmethod
    def maker(source: str, hand_on: Callable[[Packet], None], now_s: Callable[[], float]) -> Callable[[], PacketTap]:
        """Makes the tap of each opening; the numbers go on."""
        parts, numbers = itertools.count(), itertools.count()
        return lambda: PacketTap(source, next(parts), numbers, hand_on, now_s)

    def begin(self, container: Container) -> None:
        """The container is open."""
        from av.bitstream import BitStreamFilterContext
        from av.codec.context import Flags

        context = container.stream.codec_context
        self._codec, self._container = _OWN.get(context.name), container
        if self._codec is None:
            return
        context.flags |= Flags.copy_opaque
        self._parameters = bytes(context.extradata or b"")
        if _is_packed(context.name, self._parameters):
            self._bits = BitStreamFilterContext(_TO_ANNEX_B[context.name], container.stream)

    def before(self, packet: Any) -> None:
        """Numbers the packet."""
        if self._codec is not None and packet.size:
            self._number, self._key = next(self._numbers), bool(packet.is_keyframe)
            packet.opaque = self._number

    def after(self, packet: Any) -> None:
        """Hands it on. The filter takes the packet's data away, so decoding comes first."""
        if self._codec is None or self._container is None or not packet.size:
            return
        t_s, order_s = self._times_s(packet)
        data = bytes(packet) if self._bits is None else b"".join(bytes(part) for part in self._bits.filter(packet))
        if (self._key or self._first) and self._codec != "jpeg":
            data = _with_parameters(data, self._codec, self._parameters)
        self._first = False
        live, key = self._container.live, self._key or self._codec == "jpeg"
        self._hand_on(Packet(self._source, data, self._codec, self._number, self._part, key, live, t_s, order_s))

    def _times_s(self, packet: Any) -> tuple[float, float]:
        """A camera's pictures are of now; a file's are read ahead, so their own times count."""
        now_s = self._now_s()
        if self._container is None or self._container.live or packet.pts is None:
            return now_s, now_s
        base = packet.time_base
        media_s = float(packet.pts * base)
        if self._start_s is None:
            self._start_s = now_s - media_s
        order_s = media_s if packet.dts is None else float(packet.dts * base)
        return self._start_s + media_s, self._start_s + order_s


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


def _is_packed(name: str, parameters: bytes) -> bool:
    """Whether a stream's units are preceded by their lengths, as in mp4, and not by start codes."""
    return name in _TO_ANNEX_B and bool(parameters) and not parameters.startswith(_START_CODES)


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
