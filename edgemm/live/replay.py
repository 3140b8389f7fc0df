"""A recorded run, run again: the same frames for the same tasks at the same times, and the same sound.

What was looked at is looked at again, whatever the model takes now; what was dropped is dropped again, for the
recorded reason. Nothing here is paced by the model: a slower one falls behind its times and loses nothing.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgemm.errors import EdgemmError, SourceError
from edgemm.live.clock import Clock
from edgemm.live.foxglove import AUDIO
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome
from edgemm.live.ledger import DROP_REASONS, DropReason, Ledger
from edgemm.live.mcap_file import EVENT, FRAME, PICTURES, Message, outcome_of, read_about, read_messages
from edgemm.live.options import SpeechOptions, StreamOptions
from edgemm.live.slot import Slot
from edgemm.live.sources.recording import Decoded, Decoding, samples_of
from edgemm.live.supervisor import StatusCallback

_LOST: DropReason = "decode_error"
_RECORDED = (
    "tasks", "top", "labels", "language", "score_min", "max_new_tokens", "window", "window_fps", "size_px", "speech",
)  # fmt: skip


@dataclass(frozen=True)
class RecordedRun:
    """What a recording says of the run that it was made of.

    `frames` has the outcomes of each camera by frame id, `microphone` the name of the source of its sound (None without
    sound). `wall_offset_s` and `open_s` are of its clock: when the sources opened. `tasks` are the ones that it did.
    """

    path: str
    wall_offset_s: float
    open_s: float
    tasks: tuple[str, ...]
    frames: dict[str, list[FrameOutcome]]
    microphone: str | None

    @property
    def questions(self) -> dict[int, str]:
        """The questions that were answered, by id."""
        looks = (frame.look for frames in self.frames.values() for frame in frames if frame.look is not None)
        return dict(question for look in looks for question in look.questions)


def as_recorded(options: StreamOptions, can: Sequence[str]) -> StreamOptions:
    """The options of a replay: what is left at its default is as it was in the run. Of its tasks those that the model
    `can` do are done. Options of a run that replays nothing are returned as they are."""
    spec = replayed(options)
    if spec is None:
        return options
    started = next((m.body for m in read_messages(spec, (EVENT,)) if m.body.get("type") == "started"), {})
    config, default = started.get("config", {}), StreamOptions()
    left = {name for name in _RECORDED if name in config and getattr(options, name) == getattr(default, name)}
    before: dict[str, Any] = {name: _plain(config[name]) for name in left}
    if "tasks" in before:
        before["tasks"] = tuple(task for task in before["tasks"] if task in can) or None
    if "speech" in before:
        before["speech"] = SpeechOptions(**before["speech"])
    return replace(options, **before)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def replayed(options: StreamOptions) -> str | None:
    """The recorded run that is the only camera, or the microphone of a run without one; None where there is none."""
    specs = options.open_cameras or ((options.mic,) if options.mic else ())
    return specs[0] if len(specs) == 1 and is_run(specs[0]) else None


def is_run(spec: str) -> bool:
    """Whether this is the recording of a run. What cannot be read is none: the source itself says what is wrong."""
    try:
        return spec.lower().endswith(".mcap") and "wall_offset_s" in read_about(spec)
    except SourceError:
        return False


def has_sound(path: str) -> bool:
    """Whether the recording has sound."""
    return next(read_messages(path, (AUDIO,)), None) is not None


def recorded_run(path: str) -> RecordedRun:
    """What the recording of a run says. Raises SourceError where it cannot be read."""
    frames: dict[str, list[FrameOutcome]] = {}
    config: dict[str, Any] = {}
    open_s: float | None = None
    for message in read_messages(path, (EVENT, FRAME)):
        if message.schema == FRAME:
            outcome = outcome_of(message)
            frames.setdefault(outcome.source, []).append(outcome)
        elif message.body.get("type") == "started":
            config = message.body["config"]
        elif open_s is None and message.body.get("type") == "status":
            open_s = float(message.body["t_s"])
    for outcomes in frames.values():
        outcomes.sort(key=lambda outcome: outcome.frame)
    sound = next(read_messages(path, (AUDIO,)), None)
    return RecordedRun(
        path=path,
        wall_offset_s=float(read_about(path)["wall_offset_s"]),
        open_s=open_s or 0.0,
        tasks=tuple(config.get("tasks", ())),
        frames=dict(sorted(frames.items())),
        microphone=None if sound is None else sound.topic.removeprefix("/"),
    )


class ReplayedVideo:
    """The frames of one camera of a recorded run, each with what looks at it, when it was captured and not before.

    Every recorded frame is in the books: one that was not looked at is dropped for its recorded reason, and one whose
    picture the recording has lost as `decode_error`.
    """

    live = False

    def __init__(
        self,
        run: RecordedRun,
        name: str,
        *,
        clock: Clock,
        on_status: StatusCallback,
        as_fast_as_possible: bool = False,
        size_px: tuple[int, int] | None = None,
        end_s: float | None = None,
    ) -> None:
        self.name, self.spec, self.ledger = name, run.path, Ledger()
        self.error: EdgemmError | None = None
        self._size_px = size_px
        self._clock, self._on_status, self._fast = clock, on_status, as_fast_as_possible
        self._end_s = end_s if end_s is not None and as_fast_as_possible else float("inf")
        self._outcomes = iter(run.frames[name])
        self._by_frame = {outcome.frame: outcome for outcome in run.frames[name] if outcome.look is not None}
        self._by_packet = {outcome.origin[0]: outcome for outcome in self._by_frame.values() if outcome.origin}
        self._slot: Slot[Frame] = Slot()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"edgemm-replay-{name}", daemon=True)

    def start(self) -> None:
        """Reads in a thread of its own; returns at once."""
        self._thread.start()

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame that was looked at; None on time-out or at the end."""
        return self._slot.take(timeout_s)

    @property
    def ended(self) -> bool:
        """No further frame will come and none is waiting."""
        return self._slot.spent

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends the replay within `timeout_s`; what waits is dropped as stale."""
        self._stopping.set()
        self._slot.close()
        if self._slot.clear() is not None:
            self.ledger.drop("stale")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        self._on_status(self.name, "opening", self.spec)
        try:
            self._replay()
        except EdgemmError as error:
            self.error = error
        except Exception as error:  # a torn packet's surprise must not hang the run
            self.error = SourceError(f"{self.spec} cannot be read: {type(error).__name__}: {error}")
        self._slot.close()
        self._on_status(self.name, "ended", self.error.message if self.error else "the end was reached")

    def _replay(self) -> None:
        messages = (m for m in read_messages(self.spec, PICTURES) if m.topic == f"/{self.name}")
        live = False
        for picture in Decoding(self.spec).decode(messages):
            outcome = self._outcome_of(picture)
            if self._stopping.is_set() or (outcome is not None and outcome.t_capture_s >= self._end_s):
                return
            if outcome is None:
                continue
            if not live:
                live = True
                self._on_status(self.name, "live", self.spec)
            self._settle_before(outcome)
            self._deliver(outcome, picture)
        self._settle_before(None)

    def _outcome_of(self, picture: Decoded) -> FrameOutcome | None:
        """The frame that this picture is, where one looked at it."""
        if picture.packet is not None:
            return self._by_packet.get(picture.packet)
        return None if picture.frame is None else self._by_frame.get(picture.frame)

    def _settle_before(self, outcome: FrameOutcome | None) -> None:
        """Enters the frames before this one (None: all that are left) into the books."""
        for other in self._outcomes:
            if outcome is not None and other.frame == outcome.frame:
                return
            dropped = other.look is None and other.outcome in DROP_REASONS
            self.ledger.lost(other.outcome if dropped else _LOST)  # type: ignore[arg-type]

    def _deliver(self, outcome: FrameOutcome, picture: Decoded) -> None:
        image = picture.to_rgb(self._size_px, outcome.origin[1] if outcome.origin else 0)
        if not self._fast:
            self._stopping.wait(max(0.0, outcome.t_capture_s - self._clock.now_s()))
        self.ledger.captured()
        ready_s = self._clock.now_s() if self._fast else None
        at = (outcome.t_capture_s, outcome.t_media_s)
        frame = Frame(outcome.frame, self.name, image, *at, look=outcome.look, t_ready_s=ready_s)
        if self._slot.put_when_empty(frame) is not None:
            self.ledger.drop("stale")


class ReplayedAudio:
    """The sound of a recorded run in the same blocks, each when it was heard and not before. One thread reads it."""

    live = False

    def __init__(
        self, run: RecordedRun, *, clock: Clock, as_fast_as_possible: bool = False, end_s: float | None = None
    ) -> None:
        assert run.microphone is not None
        self.name, self.spec, self.ledger = run.microphone, run.path, Ledger()
        self.error: EdgemmError | None = None
        self._clock, self._fast = clock, as_fast_as_possible
        self._end_s = end_s if end_s is not None and as_fast_as_possible else float("inf")
        self._blocks = self._read(f"/{run.microphone}")
        self._next = next(self._blocks, None)
        self._stopping = threading.Event()

    def start(self) -> None:
        """Nothing to open."""

    def read(self, timeout_s: float) -> AudioBlock | None:
        """The next block, in order; None on time-out or at the end."""
        block = self._next
        if block is None or self._stopping.is_set():
            return None
        due_s = block.t_start_s + len(block.samples) / block.sample_rate_hz
        wait_s = 0.0 if self._fast else due_s - self._clock.now_s()
        if wait_s > 0 and (self._stopping.wait(min(wait_s, timeout_s)) or wait_s > timeout_s):
            return None
        self._next = next(self._blocks, None)
        self.ledger.block(len(block.samples) / block.sample_rate_hz, block.gap_s)
        return block

    @property
    def ended(self) -> bool:
        """No further block will come."""
        return self._next is None or self._stopping.is_set()

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends at once."""
        self._stopping.set()

    def _read(self, topic: str) -> Iterator[AudioBlock]:
        messages = (m for m in read_messages(self.spec, (AUDIO,)) if m.topic == topic)
        return itertools.takewhile(lambda block: block.t_start_s < self._end_s, map(self._block, messages))

    def _block(self, message: Message) -> AudioBlock:
        body, samples = message.body, samples_of(message)
        how = (body["t_start_s"], body["gap_s"], body["muted"], body["split"])
        return AudioBlock(self.name, samples, int(body["sample_rate"]), *how)
