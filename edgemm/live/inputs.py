"""The sources of one run, made from its options and handled together."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

from edgemm.errors import EdgemmError, SourceError
from edgemm.live.audio_capture import open_audio
from edgemm.live.capture import StatusCallback, open_video
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.hearing import SoundSource
from edgemm.live.ledger import Ledger, SourceCounts
from edgemm.live.options import StreamOptions
from edgemm.live.pacing import Epoch
from edgemm.live.push import PushAudio, PushVideo
from edgemm.live.replay import RecordedRun, ReplayedAudio, ReplayedVideo, is_run, recorded_run, replayed
from edgemm.live.replay import has_sound as recording_has_sound
from edgemm.live.vision import FrameSource


class Source(Protocol):
    """What all sources have in common."""

    name: str
    spec: str
    live: bool
    ledger: Ledger

    def start(self) -> None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def error(self) -> EdgemmError | None: ...
    def stop(self, timeout_s: float = 0.5) -> None: ...


class VideoSource(Source, FrameSource, Protocol):
    """A camera, a file, or pushed frames."""


class AudioSource(Source, SoundSource, Protocol):
    """A microphone, the sound of a file, or pushed samples."""


class Inputs:
    """All sources of a run. Pushed ones alone keep a run alive until they are ended; beside
    others they end when those do. The recording of a run, as the only source or beside a microphone, is replayed.
    A `recorder` is given what the cameras' recordings need."""

    def __init__(
        self, options: StreamOptions, clock: Clock, on_status: StatusCallback, recorder: Emitter | None = None
    ) -> None:
        self.epoch = epoch = Epoch(clock)
        self._clock = clock
        spec = replayed(options)
        self.replay: RecordedRun | None = None if spec is None else recorded_run(spec)
        fast = options.as_fast_as_possible
        cameras = options.open_cameras if self.replay is None else ()
        self.video: list[VideoSource] = [
            open_video(
                spec,
                name=_camera_name(number, len(cameras)),
                clock=clock,
                epoch=epoch,
                on_status=on_status,
                as_fast_as_possible=fast,
                size_px=options.size_px,
                fps=options.fps,
                recorder=recorder,
            )
            for number, spec in enumerate(cameras)
        ]
        self.audio: AudioSource | None = None
        mic = microphone_of(options)
        if self.replay is not None:
            mic = self._add_replayed(self.replay, options, mic, on_status)
        if mic is not None:
            self.audio = open_audio(
                mic, name="mic", clock=clock, epoch=epoch, on_status=on_status,
                as_fast_as_possible=fast,
            )  # fmt: skip
        self.push_video: PushVideo | None = None
        self.push_audio: PushAudio | None = None
        self._opened: list[Source] = list(self.all)
        if options.push:
            self._add_pushed(options, clock, recorder)

    def set_clock(self, least_s: float) -> None:
        """Before the start: a replay goes on at the time at which the sources of its run opened, or at `least_s`."""
        if self.replay is not None:
            self._clock.go_on(max(least_s, self.replay.open_s))

    @property
    def all(self) -> list[Source]:
        """Cameras first, then the microphone."""
        return [*self.video, *([self.audio] if self.audio else [])]

    def start(self) -> None:
        """Opens all, each in its own threads."""
        for source in self.all:
            source.start()

    def counts(self) -> dict[str, SourceCounts]:
        """The books of each source, by name."""
        return {source.name: source.ledger.counts() for source in self.all}

    def failure(self) -> EdgemmError | None:
        """The error of a source that never gave anything, if there is one."""
        for source in self.all:
            counts = source.ledger.counts()
            if source.error is not None and not counts.captured and not counts.audio_s:
                return source.error
        return None

    def end_pushed(self, *, force: bool = False) -> None:
        """Ends the pushed sources if the others have ended (or nothing more is to be pushed)."""
        if not force and (not self._opened or not all(source.ended for source in self._opened)):
            return
        for source in (self.push_video, self.push_audio):
            if source is not None:
                source.end()

    def stop(self, timeout_s: float) -> None:
        """Stops all within `timeout_s`, hung ones included."""
        deadline_s = time.monotonic() + timeout_s
        for source in self.all:
            _stop(source, 0.0)
        for source in self.all:
            _stop(source, max(0.0, deadline_s - time.monotonic()))

    def _add_replayed(
        self, run: RecordedRun, options: StreamOptions, mic: str | None, on_status: StatusCallback
    ) -> str | None:
        """Adds the sources of a recorded run; returns the microphone that is still to be opened."""
        self._clock.wall_offset_s = run.wall_offset_s
        fast = options.as_fast_as_possible
        end_s = None if options.duration_s is None else run.open_s + options.duration_s
        for name in run.frames if options.open_cameras else ():
            self.video.append(
                ReplayedVideo(
                    run, name, clock=self._clock, on_status=on_status, as_fast_as_possible=fast,
                    size_px=options.size_px, end_s=end_s,
                )
            )  # fmt: skip
        if not (self.video or mic):
            raise SourceError(
                f"the recording {run.path} holds nothing that was looked at or heard",
                hint="edgemm record makes recordings that any run can play",
            )
        if mic != run.path:
            return mic
        if run.microphone is not None:
            self.audio = ReplayedAudio(run, clock=self._clock, as_fast_as_possible=fast, end_s=end_s)
        return None

    def _add_pushed(self, options: StreamOptions, clock: Clock, recorder: Emitter | None) -> None:
        if not options.cameras:
            self.push_video = PushVideo("camera", clock, recorder)
            self.video.append(self.push_video)
        if options.mic is None and self.audio is None:
            self.push_audio = self.audio = PushAudio("mic", clock)


def microphone_of(options: StreamOptions) -> str | None:
    """The spec of the sound: what was asked for, or the own sound of a single file or of a recorded run."""
    if options.mic == "none":
        return None
    if options.mic is not None:
        return options.mic
    cameras = options.open_cameras
    return cameras[0] if len(cameras) == 1 and has_sound(cameras[0]) else None


def has_sound(spec: str) -> bool:
    """Whether this is a media file with a sound track, or a recorded run with sound. What cannot be
    opened has none: the source itself says what is wrong with it."""
    if not Path(spec).is_file():
        return False
    if is_run(spec):
        return recording_has_sound(spec)
    import av

    try:
        with av.open(spec) as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _stop(source: Source, timeout_s: float) -> None:
    # a reader that is being opened at this very moment has a thread that cannot be joined yet
    with contextlib.suppress(RuntimeError):
        source.stop(timeout_s=timeout_s)


def _camera_name(number: int, n: int) -> str:
    return "camera" if n == 1 else f"camera.{number}"
