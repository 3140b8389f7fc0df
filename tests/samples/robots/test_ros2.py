"""What the ROS 2 node makes of messages. There is no ROS 2 on PyPI: the stand-ins below have the fields, types and
defaults of sensor_msgs/Image, std_msgs/Header, audio_common_msgs/AudioData and vision_msgs 4.x as their .msg files say.
"""

import array
import importlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.live.events import (
    AnswerEvent,
    CaptionEvent,
    DetectionsEvent,
    SpeechEvent,
    TrackedObject,
    TranscriptEvent,
)


@dataclass
class Header:
    stamp: tuple[int, int] = (0, 0)
    frame_id: str = ""


@dataclass
class Image:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: array.array = field(default_factory=lambda: array.array("B"))


@dataclass
class AudioData:
    data: array.array = field(default_factory=lambda: array.array("B"))


@dataclass
class Point2D:
    x: float = 0.0
    y: float = 0.0


@dataclass
class Pose2D:
    position: Point2D = field(default_factory=Point2D)
    theta: float = 0.0


@dataclass
class BoundingBox2D:
    center: Pose2D = field(default_factory=Pose2D)
    size_x: float = 0.0
    size_y: float = 0.0


@dataclass
class ObjectHypothesis:
    class_id: str = ""
    score: float = 0.0


@dataclass
class ObjectHypothesisWithPose:
    hypothesis: ObjectHypothesis = field(default_factory=ObjectHypothesis)


@dataclass
class Detection2D:
    header: Header = field(default_factory=Header)
    results: list = field(default_factory=list)
    bbox: BoundingBox2D = field(default_factory=BoundingBox2D)
    id: str = ""


@dataclass
class Detection2DArray:
    header: Header = field(default_factory=Header)
    detections: list = field(default_factory=list)


VISION = SimpleNamespace(
    Detection2D=Detection2D, Detection2DArray=Detection2DArray, ObjectHypothesisWithPose=ObjectHypothesisWithPose
)
RESULT = {"t_capture_s": 1.0, "model_ms": 1.0, "latency_ms": 2.0}


@pytest.fixture
def messages(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "samples/robots/ros2"))
    return importlib.import_module("messages")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_pictures_of_every_encoding_and_padding(messages, encoding, padding):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    if encoding == "mono8":
        rgb[:] = rgb[:, :, :1]
    pixels = rgb[:, :, ::-1] if encoding.startswith("bgr") else rgb
    if encoding == "mono8":
        pixels = rgb[:, :, :1]
    if "a8" in encoding:
        pixels = np.concatenate([pixels, np.full((7, 11, 1), 9, np.uint8)], axis=2)
    rows = np.pad(pixels.reshape(7, -1), ((0, 0), (0, padding)))
    image = messages.image_of(
        Image(height=7, width=11, encoding=encoding, step=rows.shape[1], data=array.array("B", rows.tobytes()))
    )
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, rgb)


def test_other_encodings_are_refused(messages):
    with pytest.raises(InputError, match="16UC1"):
        messages.image_of(Image(height=1, width=1, encoding="16UC1", step=2, data=array.array("B", b"\0\0")))


def test_sound(messages):
    samples = messages.samples_of(AudioData(array.array("B", np.array([-32768, 0, 16384], "<i2").tobytes())))
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1.0, 0.0, 0.5]


def test_detections_keep_the_header_of_their_picture(messages):
    objects = (TrackedObject("mug", 0.75, (10.0, 20.0, 50.0, 40.0), 3), TrackedObject("cup", 0.5, (0.0, 0.0, 1.0, 2.0)))
    header = Header((12, 345), "camera_optical")
    array_message = messages.detections_of(DetectionsEvent(objects=objects, frame=7, **RESULT), header, VISION)
    assert array_message.header is header
    mug, cup = array_message.detections
    assert mug.header is header
    assert mug.bbox == BoundingBox2D(Pose2D(Point2D(30.0, 30.0)), 40.0, 20.0)
    assert mug.results == [ObjectHypothesisWithPose(ObjectHypothesis("mug", 0.75))]
    assert (mug.id, cup.id) == ("3", "")


def test_words_have_a_topic_when_they_are_final(messages):
    heard = {"utterance": 0, "stable_chars": 2, "t_start_s": 0.0, "t_end_s": 1.0, "latency_ms": 1.0}
    said = [
        CaptionEvent(text="a mug", confidence=0.9, frames=(1,), **RESULT),
        TranscriptEvent(text="go on", final=True, **heard),
        TranscriptEvent(text="go", final=False, **heard),
        AnswerEvent(question_id=0, question="what?", text="a mug", frames=(1,), ttft_ms=1.0, **RESULT),
        SpeechEvent(edge="start", utterance=0),
    ]
    assert [messages.text_of(event) for event in said] == [
        ("caption", "a mug"), ("transcript", "go on"), None, ("answer", "a mug"), None,
    ]  # fmt: skip
