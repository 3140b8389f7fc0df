"""Sources that a program feeds: `push_frame` and `push_audio` of a stream."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import EdgemmError, InputError
from edgemm.live.clock import Clock
from edgemm.live.emitter import Emitter
from edgemm.live.frames import AudioBlock, Frame, sixteen_bit
from edgemm.live.ledger import DropReason, Ledger
from edgemm.live.slot import Slot
from edgemm.live.speech import CHUNK_SAMPLES, SAMPLE_RATE_HZ

QUEUE_S = 30.0
RESYNC_S = 0.25


class PushVideo:
    """A camera made of pushed frames: capacity one, the newest wins."""

    live = True
    spec = "push"
    error: EdgemmError | None = None

    def __init__(self, name: str, clock: Clock, recorder: Emitter | None = None) -> None:
        self.name = name
        self.ledger = Ledger()
        self._clock, self._recorder = clock, recorder
        self._slot: Slot[Frame] = Slot()
        self._ids = itertools.count()

    def start(self) -> None:
        """Nothing to open."""

    def push(self, image: NDArray[np.uint8], t_capture_s: float | None = None) -> int:
        """Takes uint8 [H, W, 3] RGB, which must not be changed afterwards, and returns its frame
        id. `t_capture_s` is on the pipeline's clock (None: now). Never waits."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"a frame is uint8 [H, W, 3] RGB, and this is {image.dtype} {list(image.shape)}")
        stamp_s = self._clock.now_s() if t_capture_s is None else t_capture_s
        frame = Frame(next(self._ids), self.name, image, stamp_s)
        self.ledger.captured()
        left = self._slot.put(frame)
        if left is not None:
            self._drop(left, "stale" if left is frame else "superseded")
        return frame.id

    def take(self, timeout_s: float) -> Frame | None:
        """The newest frame that nobody took yet."""
        return self._slot.take(timeout_s)

    @property
    def ended(self) -> bool:
        """Nothing will come any more and nothing waits."""
        return self._slot.spent

    def end(self) -> None:
        """No further frame will be pushed."""
        self._slot.close()

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends at once; a waiting frame is dropped as stale."""
        self._slot.close()
        waiting = self._slot.clear()
        if waiting is not None:
            self._drop(waiting, "stale")

    def _drop(self, frame: Frame, reason: DropReason) -> None:
        self.ledger.drop(reason)
        if self._recorder is not None:
            self._recorder.outcome(frame, reason)


class PushAudio:
    """A microphone made of pushed samples: resampled to 16 kHz, cut into blocks of 512.

    Up to `QUEUE_S` wait; beyond that the oldest block is lost and stamped as a gap.
    """

    live = True
    spec = "push"
    error: EdgemmError | None = None

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.ledger = Ledger()
        self._clock = clock
        self._changed = threading.Condition()
        self._blocks: deque[AudioBlock] = deque()
        self._rest = np.zeros(0, np.float32)
        self._next_s: float | None = None
        self._gap_s = 0.0
        self._closed = False
        self._resampler: Any = None
        self._rate_hz = SAMPLE_RATE_HZ

    def start(self) -> None:
        """Nothing to open."""

    def push(self, samples: NDArray[np.float32], sample_rate_hz: int) -> None:
        """Takes float32 [samples] in -1…1, mono, recorded until now. Never waits."""
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise InputError(
                f"sound is float32 [samples], and this is {samples.dtype} {list(samples.shape)}",
                hint="average the channels; divide int16 by 32768",
            )
        if sample_rate_hz <= 0:
            raise InputError(f"sample_rate_hz is {sample_rate_hz}")
        start_s = self._clock.now_s() - len(samples) / sample_rate_hz
        with self._changed:
            self._append(self._resample(samples, sample_rate_hz), start_s)
            self._changed.notify_all()

    def read(self, timeout_s: float) -> AudioBlock | None:
        """The next block in order."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._closed, timeout_s)
            return self._blocks.popleft() if self._blocks else None

    @property
    def ended(self) -> bool:
        """Nothing will come any more and nothing waits."""
        with self._changed:
            return self._closed and not self._blocks

    def end(self) -> None:
        """No further sound will be pushed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends at once; what waits is discarded."""
        with self._changed:
            self._blocks.clear()
        self.end()

    def _resample(self, samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        if rate_hz != self._rate_hz:
            self._rate_hz, self._resampler = rate_hz, None
        if rate_hz == SAMPLE_RATE_HZ:
            return samples
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
        return np.asarray(self._resampler.resample_chunk(samples), np.float32)

    def _append(self, samples: NDArray[np.float32], start_s: float) -> None:
        """Follows the count of samples, since they may be pushed faster than they were recorded;
        sound that comes `RESYNC_S` later than it should follows a gap."""
        joined_s = start_s - len(self._rest) / SAMPLE_RATE_HZ
        if self._next_s is None:
            self._next_s = joined_s
        elif joined_s - self._next_s > RESYNC_S:
            self._gap_s, self._next_s = joined_s - self._next_s, joined_s
            self.ledger.audio_gap()
        sound = np.concatenate([self._rest, samples])
        whole = len(sound) // CHUNK_SAMPLES * CHUNK_SAMPLES
        for chunk in sound[:whole].reshape(-1, CHUNK_SAMPLES):
            self._put(chunk)
        self._rest = sound[whole:]

    def _put(self, chunk: NDArray[np.float32]) -> None:
        assert self._next_s is not None
        duration_s = CHUNK_SAMPLES / SAMPLE_RATE_HZ
        if self._closed:
            return
        if len(self._blocks) * duration_s >= QUEUE_S:
            self._lose_oldest(duration_s)
        self._blocks.append(AudioBlock(self.name, sixteen_bit(chunk), SAMPLE_RATE_HZ, self._next_s, self._gap_s))
        self._gap_s = 0.0
        self.ledger.audio(duration_s)
        self._next_s += duration_s

    def _lose_oldest(self, duration_s: float) -> None:
        lost = self._blocks.popleft()
        if not lost.gap_s:
            self.ledger.audio_gap()
        after = self._blocks[0]
        self._blocks[0] = AudioBlock(
            after.source, after.samples, after.sample_rate_hz, after.t_start_s,
            gap_s=lost.gap_s + duration_s + after.gap_s,
        )  # fmt: skip
