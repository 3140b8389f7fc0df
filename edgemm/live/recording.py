"""Camera and microphone to an MCAP file: for calibration, replay and bug reports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemm.errors import EdgemmError, SourceError, UsageError
from edgemm.live.audio_capture import AudioCapture, open_audio
from edgemm.live.clock import Clock
from edgemm.live.mcap_file import McapRecorder
from edgemm.live.pacing import Epoch
from edgemm.live.sources.base import Encoded, Reader, SourceKind, Wish
from edgemm.live.sources.encoded import EncodedPictures
from edgemm.live.sources.registry import find_kind, need_video
from edgemm.live.supervisor import StatusCallback, Supervisor

__all__ = ["McapRecorder", "RecordProgress", "RecordSummary", "record"]

PROGRESS_EVERY_S = 0.5
DRAIN_BLOCKS = 200


@dataclass(frozen=True)
class RecordProgress:
    """How far a recording is: its length, pictures, sound and bytes on the disk."""

    duration_s: float
    frames: int
    audio_s: float
    bytes: int


@dataclass(frozen=True)
class RecordSummary:
    """What was recorded. `duration_s` spans the first to the last picture or sound."""

    path: str
    duration_s: float
    frames: int
    audio_s: float
    audio_gaps: int
    reconnects: int
    bytes: int


class _Recording:
    """One run of `record`: what its threads share."""

    def __init__(self, path: Path, duration_s: float | None, on_status: StatusCallback) -> None:
        self.clock = Clock()
        self.epoch = Epoch(self.clock)
        self.start_s = self.epoch.ready()
        self.limit_s = float("inf") if duration_s is None else duration_s
        self.path = path
        self._recorder: McapRecorder | None = None
        self._opening = threading.Lock()
        self.failure: EdgemmError | None = None
        self.frames = 0
        self.last_s = 0.0
        self.reconnects = 0
        self.video_done = threading.Event()
        self.audio_done = False
        self.audio_s = 0.0
        self._on_status = on_status
        self._live = False

    @property
    def recorder(self) -> McapRecorder:
        """The file, begun with the first picture or sound: a source that never opens costs no older recording."""
        with self._opening:
            if self._recorder is None:
                self._recorder = McapRecorder(self.path, wall_offset_s=self.clock.wall_offset_s, start_s=self.start_s)
            return self._recorder

    def close(self) -> None:
        """Ends the file, where one was begun. Raises StorageError."""
        if self._recorder is not None:
            self._recorder.close()

    def give_up(self) -> None:
        """Deletes what was begun."""
        if self._recorder is not None:
            self.path.unlink(missing_ok=True)

    def supervise(self, spec: str) -> Supervisor[Encoded]:
        """The watched reader of the camera."""
        kind = find_kind(spec, video=True)
        self._live = kind.live
        probe, address = kind.probe, kind.lasting_spec(spec)
        return Supervisor(
            name="camera",
            spec=spec,
            live=kind.live,
            make_reader=lambda: _encoded(kind, address),
            deliver=self._picture,
            discard=lambda item: None,
            closed=lambda reader: None,
            reconnected=self._count_reconnect,
            finished=self.video_done.set,
            on_status=self._on_status,
            probe=None if probe is None else lambda: probe(address),
        )

    def drain(self, sound: AudioCapture, timeout_s: float) -> None:
        """Writes the sound that is there; waits for the first block."""
        for _ in range(DRAIN_BLOCKS):
            block = sound.read(timeout_s)
            if block is None:
                return
            t_s, timeout_s = block.t_start_s - self.start_s, 0.0
            if t_s >= self.limit_s:
                self.audio_done = True
                return
            self.recorder.write_audio(block)
            self.audio_s += len(block.samples) / block.sample_rate_hz
            self.last_s = max(self.last_s, t_s)

    def progress(self) -> RecordProgress:
        """How far it is."""
        try:
            size = self.path.stat().st_size if self._recorder is not None else 0
        except FileNotFoundError:  # it held nothing when the disk became full
            size = 0
        return RecordProgress(self.last_s, self.frames, self.audio_s, size)

    def _picture(self, item: Encoded, reader: Reader[Encoded]) -> None:
        now_s = self.clock.now_s() - self.start_s
        media = not self._live and item.t_media_s is not None
        t_s = item.t_media_s if media and item.t_media_s is not None else now_s
        if t_s >= self.limit_s or self.failure is not None:
            if not self._live:
                self.video_done.set()
            return
        order_s = item.order_s if media and item.order_s is not None else t_s
        start_s = self.start_s
        try:
            self.recorder.write_picture("camera", item.data, item.codec, start_s + t_s, order_s=start_s + order_s)
        except EdgemmError as error:
            self.failure = error
            return
        self.frames += 1
        self.last_s = max(self.last_s, t_s)

    def _count_reconnect(self) -> None:
        self.reconnects += 1


def record(
    camera: str | None,
    mic: str | None,
    path: str | Path,
    *,
    duration_s: float | None = None,
    on_progress: Callable[[RecordProgress], None] | None = None,
    on_status: StatusCallback | None = None,
    stop: threading.Event | None = None,
) -> RecordSummary:
    """Records until `duration_s` has passed, `stop` is set or the sources end.

    Live sources are stamped as they arrive and reopened when lost; files are copied as fast as
    they read, with their own times. Encoded pictures are stored as they come (H.264, H.265,
    JPEG), others as JPEG; sound as 16 kHz PCM. Raises SourceError where a source cannot be
    opened, StorageError where the disk is full (what was written stays readable).
    """
    camera, mic = (spec if spec != "none" else None for spec in (camera, mic))
    if camera is None and mic is None:
        raise UsageError("nothing to record", hint="give --camera, --mic or both")
    _check_specs(camera, mic)
    status = on_status or (lambda name, state, reason: None)
    run = _Recording(Path(path), duration_s, status)
    try:
        video = run.supervise(camera) if camera is not None else None
        sound = None if mic is None else _open_sound(mic, run, status)
        return _run(run, video, sound, on_progress, stop or threading.Event())
    except EdgemmError as error:
        if run.frames == 0 and isinstance(error, SourceError):
            run.give_up()
        raise
    finally:
        run.close()


def _check_specs(camera: str | None, mic: str | None) -> None:
    if camera is not None:
        find_kind(camera, video=True)
    if mic is not None:
        find_kind(mic, video=False)


def _open_sound(mic: str, run: _Recording, status: StatusCallback) -> AudioCapture:
    return open_audio(
        mic,
        name="microphone",
        clock=run.clock,
        epoch=run.epoch,
        on_status=status,
        as_fast_as_possible=True,
    )


def _run(
    run: _Recording,
    video: Supervisor[Encoded] | None,
    sound: AudioCapture | None,
    on_progress: Callable[[RecordProgress], None] | None,
    stop: threading.Event,
) -> RecordSummary:
    for part in (video, sound):
        if part is not None:
            part.start()
    told_s = 0.0
    try:
        while not stop.is_set() and not _over(run, video, sound):
            if sound is not None and not run.audio_done and not sound.ended:
                run.drain(sound, 0.05)
            else:
                run.video_done.wait(0.05)
            if on_progress is not None and run.clock.now_s() - told_s >= PROGRESS_EVERY_S:
                told_s = run.clock.now_s()
                on_progress(run.progress())
    finally:
        for part in (video, sound):
            if part is not None:
                part.stop(0.5)
    if run.failure is not None:
        raise run.failure
    run.close()
    return _summary(run, sound)


def _over(run: _Recording, video: Supervisor[Encoded] | None, sound: AudioCapture | None) -> bool:
    for part in (video, sound):
        if part is not None and part.error is not None:
            raise part.error
    if run.failure is not None:
        return True
    live = (sound is not None and sound.live) or (video is not None and video.live)
    if live and run.clock.now_s() - run.start_s >= run.limit_s:
        return True
    heard = sound is None or sound.ended or run.audio_done
    return heard and (video is None or run.video_done.is_set())


def _summary(run: _Recording, sound: AudioCapture | None) -> RecordSummary:
    progress = run.progress()
    counts = sound.ledger.counts() if sound else None
    return RecordSummary(
        path=str(run.path),
        duration_s=progress.duration_s,
        frames=progress.frames,
        audio_s=progress.audio_s,
        audio_gaps=counts.audio_gaps if counts else 0,
        reconnects=run.reconnects + (counts.reconnects if counts else 0),
        bytes=progress.bytes,
    )


def _encoded(kind: SourceKind, spec: str) -> Reader[Encoded]:
    if kind.encoded is not None:
        return kind.encoded(spec)
    return EncodedPictures(need_video(kind, spec)(spec, Wish()))
