"""Messages of Foxglove's schemas (https://docs.foxglove.dev/docs/sdk/schemas) in protobuf, as Foxglove shows them.

What a replay needs beside a message's fields stands behind them as JSON, in a field that no schema has and every
other reader passes over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

VIDEO, IMAGE, AUDIO = "foxglove.CompressedVideo", "foxglove.CompressedImage", "foxglove.RawAudio"
LOG, ANNOTATIONS = "foxglove.Log", "foxglove.ImageAnnotations"
SCHEMAS = (VIDEO, IMAGE, AUDIO, LOG, ANNOTATIONS)

# https://protobuf.dev/programming-guides/encoding: field 1000, a string of bytes with its length.
_OWN_FIELD = 1000
_OWN_TAG = (_OWN_FIELD << 3) | 2
_LINE_LOOP = 2  # of PointsAnnotation.Type
_COLOR = {"r": 0.25, "g": 0.9, "b": 0.65, "a": 1.0}
_THICKNESS_PX, _LETTERS_PX = 2.0, 14.0

Body = dict[str, Any]


def encode(schema: str, t_ns: int, fields: Body, own: Body) -> bytes:
    """A message of one of `SCHEMAS` at `t_ns` since 1970, with `own` behind it."""
    message = _class(schema)(**fields)
    message.timestamp.FromNanoseconds(t_ns)
    text = json.dumps(own).encode() if own else b""
    encoded: bytes = message.SerializeToString()
    return encoded + (_varint(_OWN_TAG) + _varint(len(text)) + text if text else b"")


def decode(schema: str, data: bytes) -> tuple[Body, bytes]:
    """The fields of a picture or of sound with what stands behind them, and its `data`. Raises ValueError."""
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    message = _class(schema)()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"a torn {schema}: {error}") from error
    names = ("format", "frame_id", "sample_rate", "number_of_channels")
    body = {name: getattr(message, name) for name in names if name in message.DESCRIPTOR.fields_by_name}
    for field in UnknownFieldSet(message):
        if field.field_number == _OWN_FIELD:
            body |= json.loads(field.data)
    return body, bytes(message.data)


@cache
def schema_data(schema: str) -> bytes:
    """The FileDescriptorSet that an MCAP channel of `schema` needs."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name not in files:
            for needed in file.dependencies:
                add(needed)
            files[file.name] = file

    add(_class(schema).DESCRIPTOR.file)
    described = FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(described.file.add())
    data: bytes = described.SerializeToString()
    return data


def boxes_shown(objects: Sequence[tuple[str, tuple[float, float, float, float]]], t_ns: int) -> Body:
    """Fields of an ImageAnnotations: captions with boxes x0, y0, x1, y1 in pixels."""
    at = {"seconds": t_ns // 1_000_000_000, "nanos": t_ns % 1_000_000_000}
    lines, names = [], []
    for name, (x0, y0, x1, y1) in objects:
        corners = [{"x": x, "y": y} for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        style = {"outline_color": _COLOR, "thickness": _THICKNESS_PX}
        lines.append({"timestamp": at, "type": _LINE_LOOP, "points": corners, **style})
        shown = {"text": name, "font_size": _LETTERS_PX, "text_color": _COLOR}
        names.append({"timestamp": at, "position": {"x": x0, "y": y0}, **shown})
    return {"points": lines, "texts": names}


@cache
def _class(schema: str) -> Any:
    from importlib import import_module

    name = schema.removeprefix("foxglove.")
    return getattr(import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
