"""A ROS 2 node: edgemm looks at the pictures of one topic and listens to the sound of another.

    python samples/robots/ros2/node.py --ros-args -r image:=/camera/image_raw

| topic | type | |
|---|---|---|
| `image` | sensor_msgs/Image | in: the newest one is looked at |
| `audio` | audio_common_msgs/AudioData | in: 16-bit mono at the parameter `sample_rate_hz` (16000) |
| `ask` | std_msgs/String | in: a question about the next picture |
| `detections` | vision_msgs/Detection2DArray | out: with the header of its picture |
| `caption`, `transcript`, `answer` | std_msgs/String | out |

Never run: there was no ROS 2 to run it with. Tested are the functions of `messages.py`, with stand-ins for the
messages that have the fields of their definitions. edgemm needs Python 3.11 and NumPy 2: that is Jazzy or later, in a
virtual environment with `--system-site-packages`. Whether messages that were built against NumPy 1 load beside NumPy 2
was not tried; where they do not, keep edgemm in a process of its own and take its events from a bus
(`samples/robots/zenoh`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import rclpy
import vision_msgs.msg
from audio_common_msgs.msg import AudioData
from messages import detections_of, image_of, samples_of, text_of
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

import edgemm
from edgemm.live.events import DetectionsEvent

KEPT_HEADERS = 64
TEXTS = ("caption", "transcript", "answer")


class EdgemmNode(Node):
    """Messages in, events out. The events come in a thread of its own, so that the executor is never held up."""

    def __init__(self, live: edgemm.Stream) -> None:
        super().__init__("edgemm")
        self._live = live
        self._rate_hz = self.declare_parameter("sample_rate_hz", 16_000).value
        self._lock = threading.Lock()
        self._headers: OrderedDict[int, Any] = OrderedDict()
        self._detections = self.create_publisher(vision_msgs.msg.Detection2DArray, "detections", 10)
        self._texts = {name: self.create_publisher(String, name, 10) for name in TEXTS}
        self.create_subscription(Image, "image", self._see, qos_profile_sensor_data)
        self.create_subscription(AudioData, "audio", self._hear, 100)
        self.create_subscription(String, "ask", lambda message: live.ask(message.data), 10)
        threading.Thread(target=self._tell, daemon=True).start()

    def _see(self, message: Any) -> None:
        with self._lock:  # the header is there before the first result about the picture
            self._headers[self._live.push_frame(image_of(message))] = message.header
            if len(self._headers) > KEPT_HEADERS:
                self._headers.popitem(last=False)

    def _hear(self, message: Any) -> None:
        self._live.push_audio(samples_of(message), sample_rate_hz=self._rate_hz)

    def _tell(self) -> None:
        for event in self._live:
            if isinstance(event, DetectionsEvent):
                with self._lock:
                    header = self._headers.get(event.frame)
                if header is not None:
                    self._detections.publish(detections_of(event, header, vision_msgs.msg))
            elif said := text_of(event):
                self._texts[said[0]].publish(String(data=said[1]))


def main() -> None:
    rclpy.init()
    with edgemm.load() as model, edgemm.stream(model) as live:
        rclpy.spin(EdgemmNode(live))


if __name__ == "__main__":
    main()
