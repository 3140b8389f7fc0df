"""A tiny deterministic model, media made on the spot, and sinks that keep or hinder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from edgemm.live.events import Event
from edgemm.live.frames import AudioBlock
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.results import Answer, Caption, DetectedObject, Detections, Label, Labels, Transcript


class LoudVoice:
    """Speech is whatever is loud."""

    def push(self, samples: np.ndarray) -> float:
        return 0.95 if float(np.abs(samples).mean()) > 0.02 else 0.05

    def reset(self) -> None:
        pass


class FakeModel:
    """Names the strongest colour channel; transcribes the length; answers in three pieces."""

    tasks: tuple[str, ...] = ("classify", "transcribe", "answer", "voice_activity")
    name = "fake"

    def __init__(self, *, work_s: float = 0.0, tasks: Sequence[str] | None = None) -> None:
        self.runtimes = {"model": "numpy"}
        self.precisions = {"model": "fp32"}
        self.work_s = work_s
        self.threads: set[str] = set()
        self.fail_on: set[int] = set()
        self.calls = 0
        self.warmed: tuple[str, ...] = ()
        if tasks is not None:
            self.tasks = tuple(tasks)

    def classify(self, image: np.ndarray, *, top: int = 5) -> Labels:
        began = time.perf_counter()
        self.threads.add(threading.current_thread().name)
        self.calls += 1
        if self.calls in self.fail_on:
            raise RuntimeError("the picture is cursed")
        time.sleep(self.work_s)
        means = image[::16, ::16].reshape(-1, 3).mean(axis=0)
        scores = means / max(float(means.sum()), 1e-6)
        order = np.argsort(-scores)
        labels = tuple(Label(("red", "green", "blue")[i], float(scores[i])) for i in order)
        return Labels(labels[:top], 1e3 * (time.perf_counter() - began))

    def transcribe(
        self, samples: np.ndarray, *, sample_rate_hz: int = 16_000, language: str | None = None
    ) -> Transcript:
        text = f"{len(samples) / sample_rate_hz:.1f} seconds of sound" + (f" in {language}" if language else "")
        return Transcript(text, (1, 2), 0.9, (), 1.0)

    def answer(
        self,
        frames: Sequence[np.ndarray],
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        for piece in ("it ", "is ", "here"):
            time.sleep(self.work_s)
            if on_text:
                on_text(piece)
        return Answer("it is here", (1, 2, 3), 0.9, 1.0, 3.0)

    def voice_activity(self) -> LoudVoice:
        return LoudVoice()

    def warm_up(self, tasks: Sequence[str]) -> None:
        self.warmed = tuple(tasks)


class KeepSink:
    """Keeps all that it is given."""

    essential = False

    def __init__(self, limits: SinkLimits | None = None, *, wait_s: float = 0.0) -> None:
        self.name = "keep"
        self.limits = limits or SinkLimits(events=100_000)
        self.items: list[Item] = []
        self.closed = False
        self._wait_s = wait_s

    def open(self, context: SinkContext) -> None:
        self.context = context

    def handle(self, item: Item) -> None:
        self.items.append(item)
        time.sleep(self._wait_s)

    def close(self) -> None:
        self.closed = True

    @property
    def events(self) -> list[Event]:
        return [item for item in self.items if isinstance(item, Event)]

    def blocks(self) -> list[AudioBlock]:
        return [item for item in self.items if isinstance(item, AudioBlock)]

    def of(self, event_type: str) -> list[Event]:
        return [event for event in self.events if event.type == event_type]


def speech_like(seconds: float, bursts: Sequence[tuple[float, float]]) -> np.ndarray:
    """float32 [samples] at 16 kHz: a loud tone in each (start, end), near silence elsewhere."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    sound = 1e-3 * np.random.default_rng(0).standard_normal(len(t))
    for start, end in bursts:
        inside = (t >= start) & (t < end)
        sound[inside] += 0.3 * np.sin(2 * np.pi * 220 * t[inside])
    return sound.astype(np.float32)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    fps: int = 30,
    sound: np.ndarray | None = None,
) -> Path:
    """An H.264 mp4 of uint8 [H, W, 3] frames, with 16 kHz mono sound where there is any."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=16_000, layout="mono")
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            _write_sound(container, audio, sound)
    return path


def _write_sound(container: av.container.OutputContainer, audio: object, sound: np.ndarray) -> None:
    for start in range(0, len(sound), 1024):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, start
        container.mux(audio.encode(frame))  # type: ignore[attr-defined]
    container.mux(audio.encode(None))  # type: ignore[attr-defined]


def moving_frames(n: int, size_px: tuple[int, int] = (320, 240)) -> list[np.ndarray]:
    """n frames (width, height): a bright bar that moves over a coloured ground."""
    width, height = size_px
    frames = []
    for index in range(n):
        image = np.full((height, width, 3), (30, 60, 160), np.uint8)
        x = index * 7 % max(1, width - 20)
        image[:, x : x + 20] = 240
        frames.append(image)
    return frames


class HeldModel(FakeModel):
    """A FakeModel that is warm when it is told so: what has to be there before the first frame can come."""

    def __init__(self, *, work_s: float = 0.0, tasks: Sequence[str] | None = None) -> None:
        super().__init__(work_s=work_s, tasks=tasks)
        self.go = threading.Event()

    def warm_up(self, tasks: Sequence[str]) -> None:
        assert self.go.wait(20)
        super().warm_up(tasks)


class Seeing(FakeModel):
    """Finds the yellow square of the test pattern, and says so."""

    tasks = ("classify", "detect", "caption", "answer", "transcribe", "voice_activity")

    def detect(self, image, *, score_min=0.5):
        yellow = (image[..., 0] > 200) & (image[..., 1] > 180) & (image[..., 2] < 90)
        rows, columns = np.nonzero(yellow)
        if not len(rows):
            return Detections((), 1.0)
        box = tuple(float(v) for v in (columns.min(), rows.min(), columns.max(), rows.max()))
        return Detections((DetectedObject("square", 0.97, box),), 1.0)

    def caption(self, image, *, max_new_tokens=64):
        return Caption("a yellow square on a gradient", (1, 2), 0.9, 1.0)


def until(ready: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for something to come true."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def within(seconds: float, ready: Callable[[], object]) -> None:
    """Something comes true so soon. Time in which the machine did not run this thread is not counted: it runs nothing
    else then, either."""
    step_s, left_s = 0.01, seconds
    while not ready():
        assert left_s > 0, f"it did not come true within {seconds} s"
        began_s = time.monotonic()
        time.sleep(step_s)
        left_s -= min(time.monotonic() - began_s, 2 * step_s)


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))
