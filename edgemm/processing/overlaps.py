"""How much boxes overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union [N, M] of corners a [N, 4] and b [M, 4]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), -1)
    areas = [np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), -1) for x in (a, b)]
    whole = areas[0][:, None] + areas[1][None] - shared
    return np.where(whole > 0, shared / np.where(whole > 0, whole, 1), 0.0)
