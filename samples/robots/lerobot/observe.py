"""edgemm as a camera of LeRobot, and what it sees and hears as a policy's observation.

    python samples/robots/lerobot/observe.py --camera 0 --task "put the cup on the tray"

`EdgemmCamera` has the methods of `lerobot.cameras.Camera` (0.4) by structure, not by inheritance: LeRobot 0.4 wants
av < 16 and edgemm av >= 18.1, so that pip does not put both into one environment. With
`pip install --no-deps lerobot draccus` beside edgemm, `lerobot.cameras.Camera.register(EdgemmCamera)` is all that
an isinstance check needs.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import edgemm
from edgemm.live.devices import list_cameras
from edgemm.live.events import CaptionEvent, LabelsEvent, TranscriptEvent
from edgemm.live.frames import Frame
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

READ_S = 10.0


class LeRobotCamera(Protocol):
    """What LeRobot's robots call of a camera; pictures are uint8 [H, W, 3] RGB."""

    fps: int | None
    width: int | None
    height: int | None

    @property
    def is_connected(self) -> bool: ...
    def connect(self, warmup: bool = True) -> None: ...
    def read(self) -> NDArray[Any]: ...
    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]: ...
    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]: ...
    def disconnect(self) -> None: ...


class NewestFrame:
    """A sink that keeps the newest frame of a stream. Frames come here when edgemm has looked at them, or has passed
    them over because of its pace (`every_s`)."""

    name = "lerobot"
    essential = False
    limits = SinkLimits(events=0, frames=1)

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._fresh = False

    def open(self, context: SinkContext) -> None:
        """Nothing to open."""

    def handle(self, item: Item) -> None:
        """Takes the next frame."""
        if isinstance(item, Frame):
            with self._changed:
                self._frame, self._fresh = item, True
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing to close."""

    def peek(self) -> Frame | None:
        """The newest frame, whether it was taken before or not."""
        return self._frame

    def take(self, timeout_s: float) -> Frame | None:
        """The newest frame that was not taken yet, or None when there is none for `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh, timeout_s)
            fresh, self._fresh = self._fresh, False
            return self._frame if fresh else None


class EdgemmCamera:
    """A camera whose pictures edgemm looks at on their way, at most every `every_s`.

    Before `connect` and after `disconnect` all reads raise ConnectionError. `camera` is what edgemm's `--camera` takes;
    it is opened again when it is lost, and meanwhile reads raise TimeoutError. `results` is the running stream.
    """

    def __init__(
        self,
        model: edgemm.Model,
        camera: str,
        *,
        tasks: Sequence[str] = ("classify", "caption", "transcribe"),
        every_s: float = 0.5,
        fps: int | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        self.fps, self.width, self.height = fps, width, height
        self._options: dict[str, Any] = {"camera": camera, "tasks": tuple(tasks), "every_s": every_s, "fps": fps}
        if width and height:
            self._options["size_px"] = (width, height)
        self._model = model
        self._newest = NewestFrame()
        self._live: edgemm.Stream | None = None

    def __enter__(self) -> EdgemmCamera:
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.disconnect()

    @property
    def is_connected(self) -> bool:
        """Whether a stream runs."""
        return self._live is not None

    @property
    def results(self) -> edgemm.Stream:
        """The stream, for `latest("caption")` and the like."""
        return self._need_connection()

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """The USB cameras of this machine; `spec` is what `camera` takes."""
        return [{"type": "edgemm", **asdict(found)} for found in list_cameras()]

    def connect(self, warmup: bool = True) -> None:
        """Opens the camera; with `warmup` waits for its first picture. Raises ConnectionError if it is open already,
        TimeoutError if nothing comes."""
        if self._live is not None:
            raise ConnectionError("the camera is already connected")
        self._newest = NewestFrame()
        self._live = edgemm.stream(self._model, sinks=[self._newest], **self._options)
        if warmup:
            self.height, self.width = self._read(READ_S).shape[:2]

    def disconnect(self) -> None:
        """Closes the camera."""
        self.results.stop()
        self._live = None

    def read(self) -> NDArray[np.uint8]:
        """The next picture. Raises TimeoutError after `READ_S`."""
        self._newest.take(0.0)
        return self._read(READ_S)

    def async_read(self, timeout_ms: float = 200) -> NDArray[np.uint8]:
        """The newest picture that was not read yet. Raises TimeoutError if none comes in time."""
        return self._read(timeout_ms / 1e3)

    def read_latest(self, max_age_ms: int = 500) -> NDArray[np.uint8]:
        """The newest picture, at once. Raises TimeoutError if it is older than `max_age_ms`, RuntimeError if there is
        none yet."""
        now_s, frame = self.results.now_s, self._newest.peek()
        if frame is None:
            raise RuntimeError("the camera has given no picture yet")
        if frame.age_ms(now_s) > max_age_ms:
            raise TimeoutError(f"the newest picture is {frame.age_ms(now_s):.0f} ms old, and {max_age_ms} are allowed")
        return frame.image

    def _need_connection(self) -> edgemm.Stream:
        if self._live is None:
            raise ConnectionError("the camera is not connected; call connect() first")
        return self._live

    def _read(self, timeout_s: float) -> NDArray[np.uint8]:
        self._need_connection()
        frame = self._newest.take(timeout_s)
        if frame is None:
            raise TimeoutError(f"the camera gave no picture for {1e3 * timeout_s:.0f} ms")
        return frame.image


def observation(
    cameras: Mapping[str, EdgemmCamera], state: NDArray[np.float32], *, task: str, max_age_ms: int = 500
) -> dict[str, Any]:
    """What a policy of LeRobot is given, before LeRobot makes tensors of it.

    `observation.images.<camera>` uint8 [H, W, 3], `observation.state` float32 [D], `task` (what was last said, where
    something was: "pick up the cup" needs no keyboard), and of the first camera `edgemm.caption` and `edgemm.labels`
    {label: score}, where it has such results. Raises what `read_latest` raises.
    """
    ears = next(iter(cameras.values())).results
    said, caption, labels = ears.latest("transcript"), ears.latest("caption"), ears.latest("labels")
    observed: dict[str, Any] = {
        f"observation.images.{name}": camera.read_latest(max_age_ms) for name, camera in cameras.items()
    }
    observed["observation.state"] = state
    observed["task"] = said.text if isinstance(said, TranscriptEvent) and said.final else task
    if isinstance(caption, CaptionEvent):
        observed["edgemm.caption"] = caption.text
    if isinstance(labels, LabelsEvent):
        observed["edgemm.labels"] = {label.label: label.score for label in labels.labels}
    return observed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--camera", default="0", help="what edgemm's --camera takes")
    parser.add_argument("--task", default="", help="until something is said")
    parser.add_argument("--count", type=int, default=10, help="how many observations to print, one a second")
    options = parser.parse_args()
    state = np.zeros(6, np.float32)  # a robot's joint positions
    with edgemm.load() as model, EdgemmCamera(model, options.camera) as camera:
        for _ in range(options.count):
            for key, value in observation({"front": camera}, state, task=options.task).items():
                print(f"{key}: {f'{value.dtype} {list(value.shape)}' if isinstance(value, np.ndarray) else value}")
            time.sleep(1.0)


if __name__ == "__main__":
    main()
