"""The currency of the live pipeline: frames and sound, stamped at capture, and what recordings keep of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Look:
    """What looked at a frame: tasks by name, the questions (id, text) that were answered over it, and the time in
    seconds that paces and windows went by."""

    tasks: tuple[str, ...] = ()
    questions: tuple[tuple[int, str], ...] = ()
    t_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as it left its source.

    `image` is uint8 [H, W, 3] RGB. `t_capture_s` is on the pipeline's clock, `t_media_s` is the
    source's own time stamp (None where it has none). `id` counts from 0 within `source`. `origin` is the number of the
    packet that it was decoded from and its quarter turns, where packets are recorded. `look` is what looks at it: known
    beforehand where a run is replayed. `t_ready_s` is when a replay as fast as possible had it, None otherwise.
    """

    id: int
    source: str
    image: NDArray[np.uint8]
    t_capture_s: float
    t_media_s: float | None = None
    origin: tuple[int, int] | None = None
    look: Look | None = None
    t_ready_s: float | None = None

    def age_ms(self, now_s: float) -> float:
        """How long ago it was captured."""
        return 1e3 * (now_s - (self.t_capture_s if self.t_ready_s is None else self.t_ready_s))


@dataclass(frozen=True, slots=True)
class FrameOutcome:
    """What became of a captured frame, for recordings: `outcome` is "processed" or why it was dropped; `look` is None
    where nothing looked at it. The rest is the frame's."""

    source: str
    frame: int
    t_capture_s: float
    t_media_s: float | None
    origin: tuple[int, int] | None
    outcome: str
    look: Look | None = None


@dataclass(frozen=True, eq=False)
class Packet:
    """A picture as its source encodes it, at the moment when it was read.

    `codec` is jpeg, h264 or h265 (Annex B). `number` counts within `source`, `part` counts how often it was opened;
    `key` says that decoding can begin here, `low_delay` that it was decoded so. `t_s` is on the pipeline's clock,
    `order_s` its place in decoding order.
    """

    source: str
    data: bytes
    codec: str
    number: int
    part: int
    key: bool
    low_delay: bool
    t_s: float
    order_s: float


@dataclass(frozen=True, eq=False)
class AudioBlock:
    """A stretch of sound: float32 [samples] in -1…1, mono.

    `t_start_s` is on the pipeline's clock. `gap_s` is how much sound was lost just before it. `muted` says that it was
    not listened to, and `split` that the utterance that was open after it was split then.
    """

    source: str
    samples: NDArray[np.float32]
    sample_rate_hz: int
    t_start_s: float
    gap_s: float = 0.0
    muted: bool = False
    split: bool = False


def sixteen_bit(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 in -1…1 in steps of 1/32768: what is heard is then exactly what a recording keeps."""
    steps = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    return np.asarray(steps.astype(np.float32) / np.float32(32768), np.float32)
