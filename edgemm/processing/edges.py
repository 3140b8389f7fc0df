"""How large a picture becomes whose edges are bounded: the size rules of DETR's and YOLOS' processors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import EdgesSpec


def size_of(size_hw: tuple[int, int], spec: EdgesSpec) -> tuple[int, int]:
    """(height, width) in pixels after resizing. Never empty, where the original would refuse very long pictures."""
    height, width = size_hw
    if spec.shortest_edge is None:
        assert spec.canvas_px is not None
        scale = min(spec.canvas_px[0] / height, spec.canvas_px[1] / width)
        found = int(height * scale), int(width * scale)
    else:
        found = _by_shortest(height, width, spec)
    if spec.canvas_px is not None:
        found = min(found[0], spec.canvas_px[0]), min(found[1], spec.canvas_px[1])
    step = spec.multiple_px
    return max(step, found[0] - found[0] % step), max(step, found[1] - found[1] % step)


def _by_shortest(height: int, width: int, spec: EdgesSpec) -> tuple[int, int]:
    short, long = float(min(height, width)), float(max(height, width))
    exact = float(spec.shortest_edge or 0)
    if long / short * exact > spec.longest_edge:
        # The longer edge is computed from the exact shorter one, or it would miss `longest_edge`.
        exact = spec.longest_edge * short / long
    edge = round(exact)
    upright = width < height
    # YOLOS' rule, the one with multiples, asks upright pictures last and so never leaves them as they are.
    if min(height, width) == edge and not (upright and spec.multiple_px > 1):
        return height, width
    return (int(exact * height / width), edge) if upright else (edge, int(exact * width / height))


def bicubic_weights(size_in: int, size_out: int) -> NDArray[np.float32]:
    """[size_out, size_in]: what resizes a table of positions along one axis, as torch's bicubic interpolation does.

    Keys' kernel with a = -0.75, pixel centres at halves, edges repeated. Every row sums to 1.
    """
    # In single precision, as torch computes it.
    at = np.float32(size_in / size_out) * (np.arange(size_out, dtype=np.float32) + 0.5) - np.float32(0.5)
    first = np.floor(at).astype(np.int64)
    weights = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        distance = np.abs(at - (first + tap))
        source = np.clip(first + tap, 0, size_in - 1)
        np.add.at(weights, (np.arange(size_out), source), _keys(distance))
    return weights.astype(np.float32)


def _keys(d: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
