"""A dora node: one picture of a camera or film at every tick.

`image` is uint8 [H * W * 3], with `width`, `height` and `encoding` (rgb8) beside it, as in dora's own camera nodes.
CAMERA is what OpenCV opens: a number, a URL or a file, whose end ends the node.
"""

from __future__ import annotations

import os

import cv2
import pyarrow
from dora import Node


def main() -> None:
    camera = os.environ.get("CAMERA", "0")
    capture = cv2.VideoCapture(int(camera) if camera.isdigit() else camera)
    if not capture.isOpened():
        raise SystemExit(f"no camera can be opened as {camera!r}; set CAMERA")
    node = Node()
    for event in node:
        if event["type"] != "INPUT":
            continue
        taken, picture = capture.read()
        if not taken:
            break
        height, width, _ = picture.shape
        pixels = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).ravel()
        node.send_output("image", pyarrow.array(pixels), {"width": width, "height": height, "encoding": "rgb8"})


if __name__ == "__main__":
    main()
