"""The annotated video: every frame that was taken, with the newest results and the sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import StorageError, UsageError
from edgemm.live.events import Event
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.overlay import Overlay, Results
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

_VIDEO_HZ = 90_000
_SOUND_HZ = 16_000
_OUT_OF_STEP_S = 0.04
# Each fragment is whole on the disk, so a kill costs what came after the last one.
_FRAGMENT_S = 0.5
_MUX_OPTIONS = {
    "movflags": "frag_keyframe+delay_moov+default_base_moof",
    "frag_duration": str(int(_FRAGMENT_S * 1e6)),
    "flush_packets": "1",
}
_X264_OPTIONS = {
    "preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": "30", "threads": "1",
}  # fmt: skip


class VideoSink:
    """Writes H.264 (yuv420p) and AAC into a fragmented mp4, frames at their real times.

    Of several cameras the first that gives a frame is recorded. The file is made with the first
    frame, so a run that saw nothing leaves none, and a kill loses at most a second.
    """

    name = "video"
    essential = True
    limits = SinkLimits(events=4096, frames=16, blocks=2048)

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() not in {".mp4", ".m4v", ".mov"}:
            raise UsageError(f"{self._path.name} is not a video name", hint="end it in .mp4")
        self._results = Results()
        self._overlay: Overlay | None = None
        self._context: SinkContext | None = None
        self._writer: Mp4Writer | None = None
        self._source = ""
        self._start_s = 0.0
        self._early: list[AudioBlock] = []

    def open(self, context: SinkContext) -> None:
        """Remembers what the run has; the file is made later."""
        if not context.has_picture:
            raise UsageError("there is no camera to record", hint="use --record FILE.mcap for sound")
        self._context = context

    def handle(self, item: Item) -> None:
        """Raises StorageError where the disk is full or not writable."""
        if isinstance(item, Event):
            self._results.update(item)
        elif isinstance(item, Frame):
            self._frame(item)
        elif self._writer is None and isinstance(item, AudioBlock):
            self._early = [*self._early[-1023:], item]
        elif isinstance(item, AudioBlock):
            self._sound(item)

    def close(self) -> None:
        """Ends the file properly."""
        if self._writer is not None:
            self._writer.close()

    def _frame(self, frame: Frame) -> None:
        if self._writer is None:
            self._begin(frame)
        if frame.source != self._source or self._writer is None:
            return
        if self._overlay is None:
            self._overlay = Overlay()
        image = self._overlay.draw(frame, self._results)
        self._writer.picture(image, self._frame_s(frame) - self._start_s)

    def _begin(self, frame: Frame) -> None:
        assert self._context is not None
        self._source, self._start_s = frame.source, self._frame_s(frame)
        self._writer = Mp4Writer(self._path, frame.image.shape, sound=self._context.has_sound)
        for block in self._early:
            self._sound(block)
        self._early = []

    def _sound(self, block: AudioBlock) -> None:
        assert self._context is not None
        assert self._writer is not None
        start_s = block.t_start_s
        if self._context.media_time:
            start_s -= self._context.epoch_s() or 0.0
        self._writer.sound(block.samples, start_s - self._start_s)

    def _frame_s(self, frame: Frame) -> float:
        assert self._context is not None
        by_media = self._context.media_time and frame.t_media_s is not None
        return frame.t_media_s if by_media and frame.t_media_s is not None else frame.t_capture_s


class Mp4Writer:
    """A fragmented mp4 with one video and at most one sound track, on a common time line.

    Times are seconds from the first picture. Raises StorageError; a file that shows nothing is
    removed, one that was cut short by a full disk plays as far as it goes.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], *, sound: bool) -> None:
        import av

        self._av: Any = av
        self._path = path
        self._height, self._width = shape[0] // 2 * 2, shape[1] // 2 * 2
        self._last_pts, self._cut_short = -1, False
        self._sound_at: int | None = None
        try:
            self._container = av.open(str(path), "w", format="mp4", options=_MUX_OPTIONS)
        except OSError as error:
            raise self._failed(error) from error
        self._video = self._container.add_stream("libx264", rate=30, options=_X264_OPTIONS)
        self._video.width, self._video.height = self._width, self._height
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = Fraction(1, _VIDEO_HZ)
        self._audio: Any = None
        if sound:
            self._audio = self._container.add_stream("aac", rate=_SOUND_HZ, layout="mono")
            self._audio.bit_rate = 64_000

    def picture(self, image: NDArray[np.uint8], t_s: float) -> None:
        """Adds uint8 [H, W, 3] RGB; another size than the first one's is scaled to it."""
        import cv2

        if image.shape[:2] != (self._height, self._width):
            image = self._fit(image)
        planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
        frame = self._av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._last_pts = max(self._last_pts + 1, round(t_s * _VIDEO_HZ))
        frame.pts, frame.time_base = self._last_pts, Fraction(1, _VIDEO_HZ)
        self._write(self._video, frame)

    def sound(self, samples: NDArray[np.float32], t_s: float) -> None:
        """Adds float32 [samples] at 16 kHz. Follows the count of samples; where the time says
        otherwise by more than `_OUT_OF_STEP_S`, silence fills the gap or the excess is cut."""
        if self._audio is None:
            return
        at = round(t_s * _SOUND_HZ)
        if self._sound_at is None:
            self._sound_at = 0
        apart = at - self._sound_at
        if apart > _OUT_OF_STEP_S * _SOUND_HZ:
            self._silence(apart)
        elif apart < -_OUT_OF_STEP_S * _SOUND_HZ:
            samples = samples[-apart:]
        if len(samples):
            self._samples(samples)

    def close(self) -> None:
        """Flushes the encoders and ends the file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self._last_pts >= 0:
                container.mux(self._video.encode(None))
                if self._audio is not None and self._sound_at:
                    container.mux(self._audio.encode(None))
            container.close()
        except OSError as error:
            raise self._failed(error) from error
        finally:
            if _is_own(self._path) and (
                not self._path.stat().st_size or (self._cut_short and not self._shows_something())
            ):
                self._path.unlink()

    def _shows_something(self) -> bool:
        try:
            with self._av.open(str(self._path)) as written:
                return any(True for _ in written.decode(video=0))
        except (self._av.FFmpegError, IndexError):
            return False

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import cv2

        if image.shape[0] // 2 * 2 == self._height and image.shape[1] // 2 * 2 == self._width:
            return np.ascontiguousarray(image[: self._height, : self._width])
        return np.asarray(cv2.resize(image, (self._width, self._height)), np.uint8)

    def _silence(self, n: int) -> None:
        while n > 0:
            step = min(n, _SOUND_HZ)
            self._samples(np.zeros(step, np.float32))
            n -= step

    def _samples(self, samples: NDArray[np.float32]) -> None:
        frame = self._av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = _SOUND_HZ, self._sound_at
        frame.time_base = Fraction(1, _SOUND_HZ)
        self._sound_at = (self._sound_at or 0) + len(samples)
        self._write(self._audio, frame)

    def _write(self, stream: Any, frame: Any) -> None:
        try:
            self._container.mux(stream.encode(frame))
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StorageError:
        self._cut_short = True
        reason = error.strerror or str(error)
        return StorageError(f"{self._path} cannot be written: {reason}", hint="free some space")


def _is_own(path: Path) -> bool:
    """Whether it may be deleted: a device never."""
    return path.is_file() or path.is_symlink()
