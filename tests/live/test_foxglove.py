"""Recordings as Foxglove and Rerun read them: by the schemas that stand in the file, and by their own programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.reader import make_reader

from edgemm.errors import SourceError
from edgemm.live.events import CaptionEvent, DetectionsEvent, TrackedObject
from edgemm.live.foxglove import AUDIO, IMAGE, SCHEMAS, decode, encode, schema_data
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.mcap_file import read_messages
from edgemm.live.sinks.recording import McapSink
from tests.live.web_clients import CONTEXT

RERUN = shutil.which("rerun", path=str(Path(sys.executable).parent))
NOON_NS = 1_700_000_000_400_000_000


def recorded(path: Path, **context: bool) -> Path:
    """A picture with a cup in it, what was said of it, and some sound."""
    sink = McapSink(path)
    sink.open(type(CONTEXT)(**vars(CONTEXT) | {"wall_offset_s": 1.7e9, **context}))
    sink.handle(Frame(0, "camera", np.full((48, 64, 3), 77, np.uint8), 0.5))
    times = {"t_capture_s": 0.5, "model_ms": 1.0, "latency_ms": 2.0, "source": "camera"}
    cup = TrackedObject("cup, mug", 0.75, (8.0, 4.0, 40.0, 30.0), 0)
    for number, event in enumerate((
        CaptionEvent(text="a cup", confidence=0.9, frames=(0,), **times),
        DetectionsEvent(objects=(cup,), frame=0, **times),
    )):  # fmt: skip
        object.__setattr__(event, "id", number)
        object.__setattr__(event, "t_s", 0.6)
        sink.handle(event)
    sink.handle(AudioBlock("mic", np.full(512, 0.25, np.float32), 16_000, 0.4))
    sink.close()
    return path


def by_their_schemas(path: Path) -> dict[str, list[tuple[str, object]]]:
    """Messages by topic, read with nothing but what the file says about itself."""
    found: dict[str, list[tuple[str, object]]] = {}
    with path.open("rb") as stream:
        for schema, channel, message in make_reader(stream, validate_crcs=True).iter_messages():
            assert schema is not None
            if channel.message_encoding == "json":
                read: object = json.loads(message.data)
            else:
                pool = descriptor_pool.DescriptorPool()
                for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
                    pool.Add(file)
                read = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name)).FromString(message.data)
            found.setdefault(channel.topic, []).append((schema.name, read))
    return found


def test_a_recording_says_what_its_messages_are(tmp_path: Path) -> None:
    found = by_their_schemas(recorded(tmp_path / "run.mcap"))
    assert set(found) == {"/camera", "/camera/objects", "/mic", "/said", "/events"}
    ((name, picture),) = found["/camera"]
    assert (name, picture.format, picture.frame_id) == ("foxglove.CompressedImage", "jpeg", "camera")
    assert picture.timestamp.ToNanoseconds() == 1_700_000_000_500_000_000
    assert picture.data.startswith(b"\xff\xd8")
    ((name, sound),) = found["/mic"]
    assert (name, sound.format, sound.sample_rate, sound.number_of_channels) == (AUDIO, "pcm-s16", 16_000, 1)
    assert np.frombuffer(sound.data, "<i2").tolist() == [8192] * 512
    ((name, text),) = found["/said"]
    assert (name, text.message, text.name, text.level) == ("foxglove.Log", "a cup", "caption", 2)
    ((name, marks),) = found["/camera/objects"]
    assert name == "foxglove.ImageAnnotations"
    assert [(p.x, p.y) for p in marks.points[0].points] == [(8, 4), (40, 4), (40, 30), (8, 30)]
    assert marks.texts[0].text == "cup 0.75"
    assert marks.timestamp.ToNanoseconds() == picture.timestamp.ToNanoseconds()


def test_boxes_of_scaled_pictures_do_not_fit_the_recorded_ones(tmp_path: Path) -> None:
    assert "/camera/objects" not in by_their_schemas(recorded(tmp_path / "run.mcap", scaled=True))


def test_what_a_replay_needs_comes_back(tmp_path: Path) -> None:
    own = {"packet": 7, "part": 0, "key": True, "low_delay": False}
    data = encode(IMAGE, NOON_NS, {"frame_id": "camera", "data": b"\xff\xd8\x00", "format": "jpeg"}, own)
    assert decode(IMAGE, data) == ({"frame_id": "camera", "format": "jpeg", **own}, b"\xff\xd8\x00")
    with pytest.raises(ValueError, match="torn"):
        decode(IMAGE, data[:-1])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_is_whole(schema: str) -> None:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema_data(schema)).file:
        pool.Add(file)
    assert pool.FindMessageTypeByName(schema).fields_by_name["timestamp"]


def test_pictures_in_json_are_read_too(tmp_path: Path) -> None:
    from mcap.writer import Writer

    path = tmp_path / "other.mcap"
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.start()
        schema = writer.register_schema(IMAGE, "jsonschema", b"{}")
        channel = writer.register_channel("/camera", "json", schema)
        writer.add_message(channel, NOON_NS, json.dumps({"data": "/9gA", "format": "jpeg"}).encode(), NOON_NS)
        writer.finish()
    (message,) = read_messages(path, (IMAGE,))
    assert (message.data, message.body) == (b"\xff\xd8\x00", {"format": "jpeg"})


@pytest.mark.skipif(RERUN is None, reason="the extra rerun is not installed")
def test_rerun_knows_pictures_boxes_sound_and_texts(tmp_path: Path) -> None:
    path, made = recorded(tmp_path / "run.mcap"), tmp_path / "run.rrd"
    subprocess.run([RERUN, "mcap", "convert", path, "-o", made], check=True, capture_output=True, timeout=120)
    told = subprocess.run(
        [RERUN, "rrd", "print", "-vv", made], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    for component in ("EncodedImage:blob", "TextLog:text"):
        assert component in told, component


def test_a_message_that_is_not_what_it_says_is_an_error(tmp_path: Path) -> None:
    from mcap.writer import Writer

    path = tmp_path / "wrong.mcap"
    with path.open("wb") as stream:
        writer = Writer(stream)
        writer.start()
        channel = writer.register_channel("/camera", "protobuf", writer.register_schema(IMAGE, "protobuf", b""))
        writer.add_message(channel, NOON_NS, b"\xff\xff\xff", NOON_NS)
        writer.finish()
    with pytest.raises(SourceError, match=r"/camera is no foxglove\.CompressedImage"):
        list(read_messages(path, (IMAGE,)))
