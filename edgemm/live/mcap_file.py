"""The recording format: an MCAP file (https://mcap.dev/spec) with messages that Foxglove shows.

* `/<source>` pictures: `foxglove.CompressedVideo` (H.264 or H.265, Annex B, one picture a
  message) or `foxglove.CompressedImage` (JPEG, PNG); sound: `foxglove.RawAudio` (`pcm-s16`, mono);
* `/<source>/objects`: `foxglove.ImageAnnotations`, what was found in a picture, and `/said`: `foxglove.Log`, texts;
* `/events`: `edgemm.Event`, the object of `run --json`;
* `/<source>/frames`, of a run: `edgemm.Frame`, what became of each captured frame.

Messages of a run have more fields (`edgemm.live.foxglove`), which replay goes by: a packet its `packet` number, `part`
(how often its source was opened), `key` and `low_delay`; a picture without packets its `frame` id; sound its exact
`t_start_s` and `gap_s`.
A frame names its `packet` (and the quarter `turns` after decoding), its exact times, the `outcome` ("processed" or why
it was dropped), and, where something looked at it, `tasks`, `questions` and `t_s`.

Foxglove's messages are protobuf, ours JSON; chunks are compressed with zstd. JSON with base64 data, which other
programs write, is read, too. `publish_time` is when the picture or the first sample was captured;
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgemm.errors import SourceError, StorageError
from edgemm.live.foxglove import (
    ANNOTATIONS,
    AUDIO,
    IMAGE,
    LOG,
    SCHEMAS,
    VIDEO,
    boxes_shown,
    decode,
    encode,
    schema_data,
)
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome, Look, Packet

FLUSH_EVERY_S = 0.5
CHUNK_BYTES = 1 << 18  # where a disk is full, a chunk is lost
JPEG_QUALITY = 95
MAX_RECORD_BYTES = 1 << 30
EVENT, FRAME = "edgemm.Event", "edgemm.Frame"
PICTURES = (VIDEO, IMAGE)
_INFO, _ERROR = 2, 4  # of foxglove.Log.Level

_FIELDS: dict[str, dict[str, Any]] = {
    EVENT: {},
    FRAME: {"frame": {"type": "integer"}, "outcome": {"type": "string"}, "t_capture_s": {"type": "number"}},
}


@dataclass(frozen=True)
class Message:
    """A message of a recording. `t_media_s` counts from the start of the recording; `data` is a picture or sound."""

    topic: str
    schema: str
    t_media_s: float
    body: dict[str, Any]
    data: bytes = b""


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
        self._writer = Writer(self._file, compression=CompressionType.ZSTD, chunk_size=CHUNK_BYTES)
        self._guard(lambda: self._begin(start_s, run))

    def write_picture(
        self, source: str, data: bytes, codec: str, t_s: float, *, order_s: float | None = None, **more: Any
    ) -> None:
        """An encoded picture. `codec` is jpeg, png, h264 or h265; `order_s` its place in decoding
        order where that is not the order of the times; `more` are fields of a run's recording."""
        schema = IMAGE if codec in ("jpeg", "png") else VIDEO
        self._show(source, schema, {"frame_id": source, "data": data, "format": codec}, t_s, order_s=order_s, own=more)

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
        self._tell(f"{outcome.source}/frames", FRAME, body, outcome.t_capture_s)

    def write_audio(self, block: AudioBlock) -> None:
        """A block of sound as 16 bit integers."""
        pcm = np.clip(np.rint(block.samples * 32768), -32768, 32767).astype("<i2")
        fields = {"data": pcm.tobytes(), "format": "pcm-s16", "number_of_channels": 1}
        own = {"t_start_s": block.t_start_s, "gap_s": block.gap_s, "muted": block.muted, "split": block.split}
        self._show(block.source, AUDIO, fields | {"sample_rate": block.sample_rate_hz}, block.t_start_s, own=own)

    def write_event(self, event: dict[str, Any], t_s: float) -> None:
        """An event as `run --json` prints it."""
        self._tell("events", EVENT, event, t_s)

    def write_text(self, text: str, kind: str, t_s: float, *, error: bool = False) -> None:
        """A text that was said, for those who look at the recording; `kind` says what it is."""
        self._show("said", LOG, {"level": _ERROR if error else _INFO, "message": text, "name": kind}, t_s)

    def write_boxes(
        self, source: str, objects: Sequence[tuple[str, tuple[float, float, float, float]]], t_s: float
    ) -> None:
        """Names and boxes (x0, y0, x1, y1 in pixels of the recorded picture) of what was found at `t_s`."""
        self._show(f"{source}/objects", ANNOTATIONS, boxes_shown(objects, self._to_ns(t_s)), t_s)

    def close(self) -> None:
        """Writes the index and closes the file. Raises StorageError."""
        if self._file.closed:
            return
        try:
            if self._failed is None:
                self._guard(self._finish)
        finally:
            self._drop_file()

    def _show(
        self,
        topic: str,
        schema: str,
        fields: dict[str, Any],
        t_s: float,
        *,
        order_s: float | None = None,
        own: dict[str, Any] | None = None,
    ) -> None:
        t_ns = self._to_ns(t_s)
        log_ns = t_ns if order_s is None else self._to_ns(order_s)
        data = encode(schema, t_ns, fields, own or {})
        self._guard(lambda: self._add(topic, schema, data, t_ns, log_ns))

    def _tell(self, topic: str, schema: str, body: dict[str, Any], t_s: float) -> None:
        t_ns, data = self._to_ns(t_s), json.dumps(body).encode()
        self._guard(lambda: self._add(topic, schema, data, t_ns, t_ns))

    def _add(self, source: str, schema: str, data: bytes, t_ns: int, log_ns: int) -> None:
        channel = self._channel(f"/{source}", schema)
        self._writer.add_message(channel, log_time=log_ns, publish_time=t_ns, data=data)
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self._writer.flush()
            self._flushed_s = time.monotonic()

    def _channel(self, topic: str, schema: str) -> int:
        key = (topic, schema)
        if key not in self._channels:
            if schema in SCHEMAS:
                form, encoding, described = "protobuf", "protobuf", schema_data(schema)
            else:
                text = {"title": schema, "type": "object", "properties": _FIELDS[schema]}
                form, encoding, described = "jsonschema", "json", json.dumps(text).encode()
            number = self._writer.register_schema(schema, form, described)
            self._channels[key] = self._writer.register_channel(topic, encoding, number)
        return self._channels[key]

    def _begin(self, start_s: float, run: bool) -> None:
        self._writer.start(profile="", library="edgemm")
        start_ns = self._to_ns(start_s)
        about = {"format": "2", "start_ns": str(start_ns)}
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
    Raises SourceError where the file is missing or no MCAP file, or a message is not what it says.
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
    channels: dict[int, tuple[str, str, str]] = {}
    start_ns: int | None = None
    for record in records:
        if isinstance(record, kinds.Schema):
            names[record.id] = record.name
        elif isinstance(record, kinds.Channel):
            channels[record.id] = (record.topic, names.get(record.schema_id, ""), record.message_encoding)
        elif isinstance(record, kinds.Metadata) and record.name == "edgemm":
            start_ns = int(record.metadata["start_ns"])
        elif isinstance(record, kinds.Message):
            topic, schema, encoding = channels.get(record.channel_id, ("", "", ""))
            start_ns = record.log_time if start_ns is None else start_ns
            if schema in schemas and encoding in _READERS:
                t_media_s = (record.publish_time - start_ns) / 1e9
                try:
                    body, data = _READERS[encoding](schema, record.data)
                except ValueError as error:
                    raise SourceError(f"a message on {topic} is no {schema}: {error}") from error
                yield Message(topic, schema, t_media_s, body, data)


def _read_json(_: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    body = json.loads(data)
    return body, base64.b64decode(body.pop("data", ""))


_READERS = {"json": _read_json, "protobuf": decode}
