"""Video sources as the pipeline sees them: a draining thread and the newest frame."""

from __future__ import annotations

import itertools

from edgemm.errors import EdgemmError
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.frames import Frame
from edgemm.live.ledger import DropReason, Ledger
from edgemm.live.pacing import Epoch
from edgemm.live.slot import Slot
from edgemm.live.sources.base import (
    Picture,
    Reader,
    SourceKind,
    VideoReader,
    Wish,
    decode_errors,
    origin_of,
    redact,
)
from edgemm.live.sources.container import ContainerVideo
from edgemm.live.sources.encoded import PacketTap
from edgemm.live.sources.registry import find_kind, need_video
from edgemm.live.supervisor import Patience, StatusCallback, Supervisor

__all__ = ["Patience", "StatusCallback", "VideoCapture", "open_video"]


class RateLimit:
    """Lets through at most `fps` pictures a second, judged by their time stamps."""

    def __init__(self, fps: float) -> None:
        self._period_s = 1.0 / fps
        self._due_s: float | None = None

    def admits(self, t_s: float) -> bool:
        """Whether a picture of time `t_s` is due. A fifth of a period of jitter is forgiven."""
        due_s = self._due_s
        if due_s is not None and due_s - 2 * self._period_s < t_s < due_s - 0.2 * self._period_s:
            return False
        in_step = due_s is not None and abs(t_s - due_s) < self._period_s
        base_s = due_s if in_step and due_s is not None else t_s
        self._due_s = base_s + self._period_s
        return True


class VideoCapture:
    """One video source, read by threads of its own; the newest frame is there to take.

    A live source is drained as fast as it delivers. A file plays as a camera does, frame by frame
    at the epoch plus its media time, or, `as_fast_as_possible`, waits for the taker and loses
    nothing. Whoever takes a frame settles it once in `ledger` (`processed` or `drop`).
    `error` is set where the source could never be opened. A `recorder` is given the packets, where
    the source has packets of its own, and what became of the frames that nobody took.
    """

    def __init__(
        self,
        spec: str,
        *,
        name: str,
        kind: SourceKind,
        clock: Clock,
        epoch: Epoch,
        on_status: StatusCallback,
        as_fast_as_possible: bool = False,
        wish: Wish | None = None,
        patience: Patience | None = None,
        recorder: Emitter | None = None,
    ) -> None:
        self.name, self.spec, self.live = name, redact(spec), kind.live
        self.ledger = Ledger()
        self._raw_spec, self._wish = kind.lasting_spec(spec), wish or Wish()
        self._clock, self._epoch = clock, epoch
        self._demand_paced = as_fast_as_possible and not kind.live
        self._slot: Slot[Frame] = Slot()
        self._ids = itertools.count()
        self._broken = 0
        self._recorder = recorder
        self._new_tap = None if recorder is None else PacketTap.maker(name, recorder.packet, clock.now_s)
        self._open = need_video(kind, spec)
        fps = self._wish.fps
        self._limit = RateLimit(fps) if fps and not kind.honours_fps else None
        self._epoch_s: float | None = None
        self._in_epoch = not kind.live
        if self._in_epoch:
            epoch.join()
        probe = kind.probe
        self._supervisor: Supervisor[Picture] = Supervisor(
            name=name,
            spec=spec,
            live=kind.live,
            make_reader=self._make_reader,
            deliver=self._deliver,
            discard=self._discard,
            closed=self._count_broken,
            reconnected=self.ledger.reconnected,
            finished=self._finish,
            on_status=on_status,
            probe=None if probe is None else lambda: probe(self._raw_spec),
            patience=patience or (Patience().for_people() if kind.waits else None),
        )

    def start(self) -> None:
        """Opens and reads in daemon threads; returns at once."""
        self._supervisor.start()

    def take(self, timeout_s: float) -> Frame | None:
        """The newest frame that nobody took yet, now in flight; None on time-out or at the end."""
        return self._slot.take(timeout_s)

    @property
    def ended(self) -> bool:
        """No further frame will come and none is waiting."""
        return self._slot.spent

    @property
    def error(self) -> EdgemmError | None:
        """Why the source could never be opened, or (a file) not be read on; else None."""
        return self._supervisor.error

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends the capture. Never blocks longer than `timeout_s`, even with a hung reader."""
        self._supervisor.stopping.set()
        self._slot.close()
        waiting = self._slot.clear()
        if waiting is not None:
            self._drop(waiting, "stale")
        self._supervisor.stop(timeout_s)

    def _make_reader(self) -> VideoReader:
        self._broken = 0
        reader = self._open(self._raw_spec, self._wish)
        if self._new_tap is not None and isinstance(reader, ContainerVideo):
            reader.tap = self._new_tap()
        return reader

    def _deliver(self, item: Picture, reader: Reader[Picture]) -> None:
        image, t_media_s = item
        self._count_broken(reader)
        if not self.live:
            self._wait_until_due(t_media_s or 0.0)
        t_capture_s = self._clock.now_s()
        by_media = not self.live and t_media_s is not None
        due_by_s = t_media_s if by_media and t_media_s is not None else t_capture_s
        frame = Frame(next(self._ids), self.name, image, t_capture_s, t_media_s, origin_of(reader))
        self.ledger.captured()
        if self._limit is not None and not self._limit.admits(due_by_s):
            self._drop(frame, "paced")
            return
        left = self._slot.put_when_empty(frame) if self._demand_paced else self._slot.put(frame)
        if left is not None:
            self._drop(left, "stale" if left is frame else "superseded")

    def _drop(self, frame: Frame, reason: DropReason) -> None:
        self.ledger.drop(reason)
        if self._recorder is not None:
            self._recorder.outcome(frame, reason)

    def _discard(self, item: Picture) -> None:
        """A picture of an abandoned attempt; after the stop nothing is captured any more."""
        if not self._supervisor.stopping.is_set():
            self.ledger.lost("reconnect")

    def _wait_until_due(self, t_media_s: float) -> None:
        if self._epoch_s is None:
            self._epoch_s = self._epoch.ready(self._supervisor.stopping)
            self._in_epoch = False
        if not self._demand_paced:
            wait_s = self._epoch_s + t_media_s - self._clock.now_s()
            if wait_s > 0:
                self._supervisor.stopping.wait(wait_s)

    def _count_broken(self, reader: Reader[Picture]) -> None:
        total = decode_errors(reader)
        if total > self._broken:
            self.ledger.lost("decode_error", total - self._broken)
            self._broken = total

    def _finish(self) -> None:
        if self._in_epoch:
            self._epoch.leave()
        self._slot.close()


def open_video(
    spec: str,
    *,
    name: str,
    clock: Clock,
    epoch: Epoch,
    on_status: StatusCallback,
    as_fast_as_possible: bool = False,
    size_px: tuple[int, int] | None = None,
    fps: float | None = None,
    recorder: Emitter | None = None,
) -> VideoCapture:
    """The capture of a source, not started yet.

    `size_px` (width, height) and `fps` are asked of the source; one that cannot be asked is
    scaled and thinned out (drop reason `paced`). `on_status(name, state, reason)` is called from
    the capture's own thread. Raises SourceError where the spec is of no known kind.
    """
    return VideoCapture(
        spec,
        name=name,
        kind=find_kind(spec, video=True),
        clock=clock,
        epoch=epoch,
        on_status=on_status,
        as_fast_as_possible=as_fast_as_possible,
        wish=Wish(size_px, fps),
        recorder=recorder,
    )
