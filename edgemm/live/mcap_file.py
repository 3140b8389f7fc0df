"""The recording format: an MCAP file (https://mcap.dev/spec) with messages that Foxglove shows.

* `/<source>` pictures: `foxglove.CompressedVideo` (H.264 or H.265, Annex B, one picture a
  message) or `foxglove.CompressedImage` (JPEG, PNG); sound: `foxglove.RawAudio` (`pcm-s16`, mono);
* `/events`: `edgemm.Event`, the object of `run --json`;
* `/<source>/frames`, of a run: `edgemm.Frame`, what became of each captured frame.

Messages of a run have more fields, which replay goes by: a packet its `packet` number, `part` (how often its source
was opened), `key` and `low_delay`; a picture without packets its `frame` id; sound its exact `t_start_s` and `gap_s`.
A frame names its `packet` (and the quarter `turns` after decoding), its exact times, the `outcome` ("processed" or why
it was dropped), and, where something looked at it, `tasks`, `questions` and `t_s`.

Messages are JSON (schemas as jsonschema) with base64 data; chunks are compressed with zstd, which
takes base64's third back. `publish_time` is when the picture or the first sample was captured;
`log_time` is the same but in decoding order. The metadata record `edgemm` has `start_ns`, the
moment that is media time 0, and of a run `wall_offset_s`. A chunk is written to the disk at least
every half second, so a kill loses less than a second; `read_messages` reads whatever is whole of a
torn file.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgemm.errors import SourceError, StorageError
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome, Look, Packet

FLUSH_EVERY_S = 0.5
JPEG_QUALITY = 95
MAX_RECORD_BYTES = 1 << 30
VIDEO, IMAGE, AUDIO = "foxglove.CompressedVideo", "foxglove.CompressedImage", "foxglove.RawAudio"
EVENT, FRAME = "edgemm.Event", "edgemm.Frame"
PICTURES = (VIDEO, IMAGE)

_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_DATA = {"type": "string", "contentEncoding": "base64"}
_STRING, _INTEGER = {"type": "string"}, {"type": "integer"}
_COMPRESSED = {"timestamp": _TIME, "frame_id": _STRING, "data": _DATA, "format": _STRING}
_FIELDS: dict[str, dict[str, Any]] = {
    VIDEO: _COMPRESSED,
    IMAGE: _COMPRESSED,
    AUDIO: {
        "timestamp": _TIME,
        "data": _DATA,
        "format": _STRING,
        "sample_rate": _INTEGER,
        "number_of_channels": _INTEGER,
    },
    EVENT: {},
    FRAME: {"frame": _INTEGER, "outcome": _STRING, "t_capture_s": {"type": "number"}},
}


@dataclass(frozen=True)
class Message:
    """A message of a recording. `t_media_s` counts from the start of the recording."""

    topic: str
    schema: str
    t_media_s: float
    body: dict[str, Any]

    def data(self) -> bytes:
        """The picture's or the sound's bytes."""
        return base64.b64decode(self.body["data"])


class McapRecorder:
    """Writes a recording; any thread may write. Times are seconds on the pipeline's clock.

    Raises StorageError where the file cannot be written (any more); what was written before
    stays readable, and a file that holds no picture and no sound goes. `wall_offset_s` is the
    clock's; `start_s` is media time 0; `run` says that `write_outcome` will tell about every frame.
    """

    def __init__(self, path: str | Path, *, wall_offset_s: float, start_s: float = 0.0, run: bool = False) -> None:
        from mcap.writer import CompressionType, Writer

        self.path = Path(path)
        self._wall_offset_s = wall_offset_s
        self._lock = threading.Lock()
        self._channels: dict[tuple[str, str], int] = {}
        self._flushed_s = 0.0
        self._failed: StorageError | None = None
        try:
            self._file: IO[bytes] = self.path.open("wb")
        except OSError as error:
            raise self._storage_error(error) from error
        self._writer = Writer(self._file, compression=CompressionType.ZSTD)
        self._guard(lambda: self._begin(start_s, run))

    def write_picture(
        self, source: str, data: bytes, codec: str, t_s: float, *, order_s: float | None = None, **more: Any
    ) -> None:
        """An encoded picture. `codec` is jpeg, png, h264 or h265; `order_s` its place in decoding
        order where that is not the order of the times; `more` are fields of a run's recording."""
        body = {"frame_id": source, "data": base64.b64encode(data).decode(), "format": codec, **more}
        self._write(source, IMAGE if codec in ("jpeg", "png") else VIDEO, body, t_s, order_s)

    def write_frame(self, frame: Frame) -> None:
        """A picture that the source gave as pixels: as it is (PNG) where something looked at it, else as JPEG of
        quality 95."""
        data, codec = (encode_png(frame.image), "png") if frame.look else (encode_jpeg(frame.image), "jpeg")
        self.write_picture(frame.source, data, codec, frame.t_capture_s, frame=frame.id)

    def write_packet(self, packet: Packet) -> None:
        """A picture as its source encodes it."""
        more = {"packet": packet.number, "part": packet.part, "key": packet.key, "low_delay": packet.low_delay}
        self.write_picture(packet.source, packet.data, packet.codec, packet.t_s, order_s=packet.order_s, **more)

    def write_outcome(self, outcome: FrameOutcome) -> None:
        """What became of a frame."""
        packet, turns = outcome.origin or (None, 0)
        body: dict[str, Any] = {
            "frame": outcome.frame,
            "t_capture_s": outcome.t_capture_s,
            "t_media_s": outcome.t_media_s,
            "packet": packet,
            "turns": turns,
            "outcome": outcome.outcome,
        }
        if outcome.look is not None:
            body |= asdict(outcome.look)
        self._write(f"{outcome.source}/frames", FRAME, body, outcome.t_capture_s, None)

    def write_audio(self, block: AudioBlock) -> None:
        """A block of sound as 16 bit integers."""
        pcm = np.clip(np.rint(block.samples * 32768), -32768, 32767).astype("<i2")
        body = {
            "data": base64.b64encode(pcm.tobytes()).decode(),
            "format": "pcm-s16",
            "sample_rate": block.sample_rate_hz,
            "number_of_channels": 1,
            "t_start_s": block.t_start_s,
            "gap_s": block.gap_s,
            "muted": block.muted,
            "split": block.split,
        }
        self._write(block.source, AUDIO, body, block.t_start_s, None)

    def write_event(self, event: dict[str, Any], t_s: float) -> None:
        """An event as `run --json` prints it."""
        self._write("events", EVENT, event, t_s, None)

    def close(self) -> None:
        """Writes the index and closes the file. Raises StorageError."""
        if self._file.closed:
            return
        try:
            if self._failed is None:
                self._guard(self._finish)
        finally:
            self._drop_file()

    def _write(self, source: str, schema: str, body: dict[str, Any], t_s: float, order_s: float | None) -> None:
        t_ns = self._to_ns(t_s)
        if schema not in (EVENT, FRAME):
            stamp = {"sec": t_ns // 1_000_000_000, "nsec": t_ns % 1_000_000_000}
            body = {"timestamp": stamp, **body}
        data = json.dumps(body).encode()
        log_ns = t_ns if order_s is None else self._to_ns(order_s)
        self._guard(lambda: self._add(source, schema, data, t_ns, log_ns))

    def _add(self, source: str, schema: str, data: bytes, t_ns: int, log_ns: int) -> None:
        channel = self._channel(f"/{source}", schema)
        self._writer.add_message(channel, log_time=log_ns, publish_time=t_ns, data=data)
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed_s = time.monotonic()

    def _channel(self, topic: str, schema: str) -> int:
        key = (topic, schema)
        if key not in self._channels:
            text = {"title": schema, "type": "object", "properties": _FIELDS[schema]}
            number = self._writer.register_schema(schema, "jsonschema", json.dumps(text).encode())
            self._channels[key] = self._writer.register_channel(topic, "json", number)
        return self._channels[key]

    def _begin(self, start_s: float, run: bool) -> None:
        self._writer.start(profile="", library="edgemm")
        start_ns = self._to_ns(start_s)
        about = {"format": "1", "start_ns": str(start_ns)}
        if run:
            about["wall_offset_s"] = repr(self._wall_offset_s)
        self._writer.add_metadata("edgemm", about)
        self._file.flush()

    def _finish(self) -> None:
        self._writer.finish()
        self._file.flush()

    def _guard(self, action: Any) -> None:
        with self._lock:
            if self._failed is not None:
                raise self._failed
            try:
                action()
            except OSError as error:
                self._drop_file()
                self._failed = self._storage_error(error, kept=self._keep_what_is_readable())
                raise self._failed from error

    def _drop_file(self) -> None:
        try:
            self._file.close()
        except OSError:
            # what Python still holds in its buffer does not fit: the second close lets go of it
            self._file.close()

    def _keep_what_is_readable(self) -> bool:
        try:
            if any(True for _ in read_messages(self.path, (*PICTURES, AUDIO))):
                return True
        except SourceError:
            pass  # not even its head was written
        if self.path.is_file() or self.path.is_symlink():  # a device is never deleted
            self.path.unlink()
        return False

    def _storage_error(self, error: OSError, *, kept: bool = False) -> StorageError:
        rest = "; what was recorded until then is in it" if kept else ""
        return StorageError(
            f"{self.path} cannot be written: {error.strerror or error}",
            hint=f"free some space or choose another place{rest}",
        )

    def _to_ns(self, t_s: float) -> int:
        return round((t_s + self._wall_offset_s) * 1e9)


def encode_jpeg(image: Any) -> bytes:
    """JPEG of quality 95 of uint8 [H, W, 3] RGB."""
    import cv2

    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def encode_png(image: Any) -> bytes:
    """PNG of uint8 [H, W, 3] RGB, lightly compressed: the bytes matter less than the time."""
    import cv2

    how = (
        (cv2.IMWRITE_PNG_COMPRESSION, 1),
        (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
        (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".png", bgr, [value for pair in how for value in pair])[1])


def outcome_of(message: Message) -> FrameOutcome:
    """What an `edgemm.Frame` message says."""
    body, source = message.body, message.topic.removeprefix("/").removesuffix("/frames")
    look = None
    if "tasks" in body:
        look = Look(tuple(body["tasks"]), tuple((n, text) for n, text in body["questions"]), body["t_s"])
    origin = None if body["packet"] is None else (body["packet"], body["turns"])
    times_s = (body["t_capture_s"], body["t_media_s"])
    return FrameOutcome(source, body["frame"], *times_s, origin, body["outcome"], look)


def read_about(path: str | Path) -> dict[str, str]:
    """The metadata record `edgemm` of a recording, which stands before the first message; empty where there is none.
    Raises SourceError where the file is missing or no MCAP file."""
    from mcap import records as kinds

    with _opened(path) as stream:
        for record in _whole_records(stream):
            if isinstance(record, kinds.Metadata) and record.name == "edgemm":
                return dict(record.metadata)
            if isinstance(record, kinds.Message):
                break
    return {}


def read_messages(path: str | Path, schemas: tuple[str, ...]) -> Iterator[Message]:
    """The messages of these schemas in the order in which they were written.

    A file that was torn by a kill or a full disk ends with its last whole chunk.
    Raises SourceError where the file is missing or no MCAP file.
    """
    with _opened(path) as stream:
        yield from _parse(_whole_records(stream), schemas)


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        with Path(path).open("rb") as stream:
            if stream.read(8) != b"\x89MCAP0\r\n":
                raise SourceError(f"{path} is not a recording", hint="expected an MCAP file")
            stream.seek(0)
            yield stream
    except SourceError:  # it is an OSError too
        raise
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _whole_records(stream: IO[bytes]) -> Iterator[Any]:
    import zstandard
    from mcap.exceptions import McapError
    from mcap.stream_reader import StreamReader

    reader = StreamReader(stream, validate_crcs=True, record_size_limit=MAX_RECORD_BYTES)
    try:
        yield from reader.records
    except (McapError, zstandard.ZstdError, struct.error, ValueError):
        return  # the torn end


def _parse(records: Iterator[Any], schemas: tuple[str, ...]) -> Iterator[Message]:
    from mcap import records as kinds

    names: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    start_ns: int | None = None
    for record in records:
        if isinstance(record, kinds.Schema):
            names[record.id] = record.name
        elif isinstance(record, kinds.Channel):
            if record.message_encoding == "json":
                channels[record.id] = (record.topic, names.get(record.schema_id, ""))
        elif isinstance(record, kinds.Metadata) and record.name == "edgemm":
            start_ns = int(record.metadata["start_ns"])
        elif isinstance(record, kinds.Message):
            topic, schema = channels.get(record.channel_id, ("", ""))
            start_ns = record.log_time if start_ns is None else start_ns
            if schema in schemas:
                t_media_s = (record.publish_time - start_ns) / 1e9
                yield Message(topic, schema, t_media_s, json.loads(record.data))
