"""Sound sources as the pipeline sees them: 16 kHz mono blocks in order, gaps stamped."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import EdgemmError
from edgemm.live.clock import Clock
from edgemm.live.frames import AudioBlock, sixteen_bit
from edgemm.live.ledger import Ledger
from edgemm.live.pacing import Epoch
from edgemm.live.sources.base import AudioReader, Reader, Sound, SourceKind, redact
from edgemm.live.sources.registry import find_kind, need_audio
from edgemm.live.supervisor import Patience, StatusCallback, Supervisor

SAMPLE_RATE_HZ = 16_000
BLOCK_SAMPLES = 512
BLOCK_S = BLOCK_SAMPLES / SAMPLE_RATE_HZ
CAPACITY_BLOCKS = 30 * SAMPLE_RATE_HZ // BLOCK_SAMPLES
# A microphone is noticed to be gone within 0.5 s, and looked for every second.
PATIENCE = Patience(stall_min_s=0.4, stall_max_s=2.0, lost_after_s=0.6, backoff_max_s=1.0)
# Stamps that differ from the count of samples by more than this mean that sound is missing.
GAP_LIVE_S = 0.5
GAP_MEDIA_S = 0.06
# How fast the count of samples follows the stamps: it tracks a clock that is 400 ppm off to 1 ms.
SLEW = 0.02


class BlockCutter:
    """Resamples pieces of sound to 16 kHz and cuts them into blocks of 512 with a time each.

    A new stretch starts where sound is missing: what was left of the old one then belongs to the
    gap, so that block, gap, block add up to the time that passed.
    """

    def __init__(self, source: str, *, live: bool) -> None:
        self._source, self._live = source, live
        self._resampler: Any = None
        self._rate_hz = 0
        self._left = np.zeros(0, np.float32)
        self._anchor_s: float | None = None
        self._read_samples = 0
        self._cut_samples = 0
        self._end_s: float | None = None

    def push(self, sound: Sound, t_start_s: float | None) -> list[AudioBlock]:
        """The blocks that became whole. `t_start_s` is of the piece's first sample; None: it
        follows on the piece before."""
        if self._missing(sound, t_start_s):
            self.restart()
        if self._anchor_s is None:
            self._begin(sound.rate_hz, t_start_s)
        elif self._live and t_start_s is not None:
            self._anchor_s += SLEW * self._error_s(t_start_s)
        self._read_samples += len(sound.samples)
        return self._cut(self._resample(sound.samples, last=False))

    def flush(self) -> list[AudioBlock]:
        """The rest at the end of the sound, filled up with zeros to a whole block."""
        if self._anchor_s is None:
            return []
        blocks = self._cut(self._resample(np.zeros(0, np.float32), last=True))
        if len(self._left):
            blocks += self._cut(np.zeros(BLOCK_SAMPLES - len(self._left), np.float32))
        self.restart()
        return blocks

    def restart(self) -> None:
        """The next piece does not follow on the last one."""
        self._anchor_s = None

    def _missing(self, sound: Sound, t_start_s: float | None) -> bool:
        if self._anchor_s is None:
            return False
        if sound.lost or sound.rate_hz != self._rate_hz:
            return True
        if t_start_s is None:
            return False
        return self._error_s(t_start_s) > (GAP_LIVE_S if self._live else GAP_MEDIA_S)

    def _error_s(self, t_start_s: float) -> float:
        assert self._anchor_s is not None
        return t_start_s - (self._anchor_s + self._read_samples / self._rate_hz)

    def _begin(self, rate_hz: int, t_start_s: float | None) -> None:
        import soxr

        start_s = t_start_s if t_start_s is not None else (self._end_s or 0.0)
        self._anchor_s = max(start_s, self._end_s) if self._end_s is not None else start_s
        self._rate_hz, self._read_samples, self._cut_samples = rate_hz, 0, 0
        self._left = np.zeros(0, np.float32)
        self._resampler = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")

    def _resample(self, samples: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return samples
        out: NDArray[np.float32] = self._resampler.resample_chunk(samples, last=last)
        return out

    def _cut(self, samples: NDArray[np.float32]) -> list[AudioBlock]:
        samples = np.concatenate((self._left, samples))
        whole = len(samples) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._left = samples[whole:]
        return [self._block(np.ascontiguousarray(part)) for part in samples[:whole].reshape(-1, BLOCK_SAMPLES)]

    def _block(self, samples: NDArray[np.float32]) -> AudioBlock:
        assert self._anchor_s is not None
        t_start_s = self._anchor_s + self._cut_samples / SAMPLE_RATE_HZ
        first = self._cut_samples == 0 and self._end_s is not None
        gap_s = max(0.0, t_start_s - (self._end_s or 0.0)) if first else 0.0
        self._cut_samples += len(samples)
        self._end_s = t_start_s + BLOCK_S
        return AudioBlock(self._source, sixteen_bit(samples), SAMPLE_RATE_HZ, t_start_s, gap_s)


class AudioCapture:
    """One sound source, read by threads of its own into a queue of 30 s.

    Sound is never dropped silently: what is lost (a microphone unplugged, a queue that ran over)
    is the `gap_s` of the next block and counted in `ledger`. A file plays in step with the
    pipeline's epoch, or, `as_fast_as_possible`, waits for the taker; then `t_start_s` is still
    epoch plus media time and so runs ahead of the clock.
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
        patience: Patience = PATIENCE,
    ) -> None:
        self.name, self.spec, self.live = name, redact(spec), kind.live
        self.ledger = Ledger()
        self._raw_spec, self._clock, self._epoch = spec, clock, epoch
        self._demand_paced = as_fast_as_possible and not kind.live
        self._cutter = BlockCutter(name, live=kind.live)
        self._changed = threading.Condition()
        self._blocks: deque[AudioBlock] = deque()
        self._closed = False
        self._reader: Reader[Sound] | None = None
        self._epoch_s: float | None = None
        self._in_epoch = not kind.live
        if self._in_epoch:
            epoch.join()
        self._open = need_audio(kind, spec)
        probe = kind.probe
        self._supervisor: Supervisor[Sound] = Supervisor(
            name=name,
            spec=spec,
            live=kind.live,
            make_reader=self._make_reader,
            deliver=self._deliver,
            discard=lambda sound: None,
            closed=self._flush,
            reconnected=self.ledger.reconnected,
            finished=self._finish,
            on_status=on_status,
            probe=None if probe is None else lambda: probe(spec),
            patience=patience.for_people() if kind.waits else patience,
        )

    def start(self) -> None:
        """Opens and reads in daemon threads; returns at once."""
        self._supervisor.start()

    def read(self, timeout_s: float) -> AudioBlock | None:
        """The next block, in order; None on time-out or at the end."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._blocks:
                left_s = deadline_s - time.monotonic()
                if self._closed or left_s <= 0:
                    return None
                self._changed.wait(left_s)
            block = self._blocks.popleft()
            self._changed.notify_all()
        self.ledger.block(len(block.samples) / block.sample_rate_hz, block.gap_s)
        return block

    @property
    def ended(self) -> bool:
        """No further block will come and none is waiting."""
        with self._changed:
            return self._closed and not self._blocks

    @property
    def error(self) -> EdgemmError | None:
        """Why the source could never be opened, or (a file) not be read on; else None."""
        return self._supervisor.error

    def stop(self, timeout_s: float = 0.5) -> None:
        """Ends the capture and discards what waits. Never blocks longer than `timeout_s`."""
        self._supervisor.stopping.set()
        with self._changed:
            self._closed = True
            self._blocks.clear()
            self._changed.notify_all()
        self._supervisor.stop(timeout_s)

    def _make_reader(self) -> AudioReader:
        return self._open(self._raw_spec)

    def _deliver(self, sound: Sound, reader: Reader[Sound]) -> None:
        if reader is not self._reader:
            self._cutter.restart()
            self._reader = reader
        for block in self._cutter.push(sound, self._start_s(sound)):
            self._put(block)

    def _start_s(self, sound: Sound) -> float | None:
        """The time of the first sample on the pipeline's clock."""
        if self.live:
            if sound.t_monotonic_s is not None:
                return self._clock.from_monotonic_s(sound.t_monotonic_s)
            return self._clock.now_s() - len(sound.samples) / sound.rate_hz
        if self._epoch_s is None:
            self._epoch_s = self._epoch.ready(self._supervisor.stopping)
            self._in_epoch = False
        if sound.t_media_s is None:
            return None
        return self._epoch_s + sound.t_media_s

    def _put(self, block: AudioBlock) -> None:
        if not self.live and not self._demand_paced:
            wait_s = block.t_start_s + BLOCK_S - self._clock.now_s()
            if wait_s > 0:
                self._supervisor.stopping.wait(wait_s)
        with self._changed:
            if self._demand_paced:
                self._changed.wait_for(lambda: len(self._blocks) < CAPACITY_BLOCKS or self._closed)
            elif len(self._blocks) >= CAPACITY_BLOCKS:
                self._forget_half()
            if not self._closed:
                self._blocks.append(block)
                self._changed.notify_all()

    def _forget_half(self) -> None:
        """One long gap rather than many short ones: words between survive."""
        missing_s = 0.0
        for _ in range(CAPACITY_BLOCKS // 2):
            lost = self._blocks.popleft()
            missing_s += lost.gap_s + BLOCK_S
        head = self._blocks.popleft()
        self._blocks.appendleft(dataclasses.replace(head, gap_s=head.gap_s + missing_s))

    def _flush(self, reader: Reader[Sound]) -> None:
        if reader is self._reader and not self._supervisor.stopping.is_set():
            for block in self._cutter.flush() if not self.live else ():
                self._put(block)

    def _finish(self) -> None:
        if self._in_epoch:
            self._epoch.leave()
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def open_audio(
    spec: str,
    *,
    name: str,
    clock: Clock,
    epoch: Epoch,
    on_status: StatusCallback,
    as_fast_as_possible: bool = False,
) -> AudioCapture:
    """The capture of a sound source, not started yet.

    Raises SourceError where the spec is of no known kind.
    """
    return AudioCapture(
        spec,
        name=name,
        kind=find_kind(spec, video=False),
        clock=clock,
        epoch=epoch,
        on_status=on_status,
        as_fast_as_possible=as_fast_as_possible,
    )
