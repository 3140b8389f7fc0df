"""The currency of the live pipeline: frames and blocks of sound, stamped at capture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as it left its source.

    `image` is uint8 [H, W, 3] RGB. `t_capture_s` is on the pipeline's clock, `t_media_s` is the
    source's own time stamp (None where it has none). `id` counts from 0 within `source`.
    """

    id: int
    source: str
    image: NDArray[np.uint8]
    t_capture_s: float
    t_media_s: float | None = None


@dataclass(frozen=True, eq=False)
class AudioBlock:
    """A stretch of sound: float32 [samples] in -1…1, mono.

    `t_start_s` is on the pipeline's clock. `gap_s` is how much sound was lost just before it.
    """

    source: str
    samples: NDArray[np.float32]
    sample_rate_hz: int
    t_start_s: float
    gap_s: float = 0.0
