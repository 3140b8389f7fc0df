"""Between ROS 2 messages and edgemm's arrays and events: plain functions, which need no ROS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.live.events import AnswerEvent, CaptionEvent, DetectionsEvent, Event, TranscriptEvent

ENCODINGS: dict[str, tuple[int, tuple[int, int, int]]] = {  # bytes a pixel, and which are red, green and blue
    "rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}  # fmt: skip


def image_of(message: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB of a sensor_msgs/Image, a copy; rows may be padded (`step`). Raises InputError for encodings
    that are not in `ENCODINGS`."""
    if message.encoding not in ENCODINGS:
        raise InputError(
            f"pictures in {message.encoding!r} cannot be read; {', '.join(ENCODINGS)} can",
            hint="republish them with image_proc",
        )
    count, channels = ENCODINGS[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * count].reshape(message.height, message.width, count)
    return np.ascontiguousarray(pixels[:, :, channels])


def samples_of(message: Any) -> NDArray[np.float32]:
    """float32 [samples] in -1…1 of an audio_common_msgs/AudioData that holds 16-bit little-endian mono samples."""
    return np.frombuffer(bytes(message.data), "<i2").astype(np.float32) / np.float32(32768)


def detections_of(event: DetectionsEvent, header: Any, vision: Any) -> Any:
    """A vision_msgs/Detection2DArray (4.x) with the header of the picture that it is about; `vision` is the module
    vision_msgs.msg."""
    array = vision.Detection2DArray(header=header)
    for found in event.objects:
        x0, y0, x1, y1 = found.box_px
        detection = vision.Detection2D(header=header, id="" if found.track_id is None else str(found.track_id))
        detection.bbox.center.position.x = (x0 + x1) / 2
        detection.bbox.center.position.y = (y0 + y1) / 2
        detection.bbox.size_x, detection.bbox.size_y = x1 - x0, y1 - y0
        result = vision.ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = found.label, found.score
        detection.results.append(result)
        array.detections.append(detection)
    return array


def text_of(event: Event) -> tuple[str, str] | None:
    """The topic of a result in words and its text; None for other events, and for what may still be corrected."""
    match event:
        case CaptionEvent() | AnswerEvent():
            return event.type, event.text
        case TranscriptEvent(final=True):
            return event.type, event.text
    return None
