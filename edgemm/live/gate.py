"""Whether a picture is worth the model: a comparison of small grey pictures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LONGEST_S = 10.0

_CELLS = (40, 30)
_ROWS = 120
_LEAST = 8.0  # grey levels; compression moves a cell less
_FAR = 5.0  # times the noise of a cell
_MOST_NOISE = 4.0  # more is movement, which must not raise the bar
_LIGHT = 30.0  # grey levels: all of it at once is the light switch
_LEAST_CELLS = 2
_ADAPT_S = 2.0


class ChangeGate:
    """Opens where a picture differs from the one that was last looked at, and after `LONGEST_S` in any case.

    A picture is 40 x 30 cells of mean grey. It differs where two cells or more have moved, against the median of all,
    by more than 8 grey levels and 5 times the cells' noise, which is measured from picture to picture; or where the
    median has by 30. What stays below that is followed within seconds, so that light may change slowly.
    """

    def __init__(self) -> None:
        self._newest: NDArray[np.float32] | None = None
        self._newest_s = 0.0
        self._looked: NDArray[np.float32] | None = None
        self._looked_s = -math.inf
        self._noise: float | None = None

    def changed(self, image: NDArray[np.uint8], t_s: float) -> bool:
        """Whether uint8 [H, W, 3] RGB of this moment, in seconds on any clock, is to be looked at."""
        cells = _cells(image)
        before, before_s = self._newest, self._newest_s
        self._newest, self._newest_s = cells, t_s
        if before is None or self._looked is None or not 0 <= t_s - self._looked_s < LONGEST_S:
            return True
        noise = self._follow_noise(cells - before)
        apart = cells - self._looked
        shift = _median(apart)
        far = np.abs(apart - shift) > max(_LEAST, _FAR * noise)
        if abs(shift) > _LIGHT or np.count_nonzero(far) >= _LEAST_CELLS:
            return True
        part = -math.expm1(-max(0.0, t_s - before_s) / _ADAPT_S)
        self._looked += np.where(far, 0.0, part * apart).astype(np.float32)
        return False

    def looked(self) -> None:
        """The newest picture is looked at: the next ones are compared with it."""
        assert self._newest is not None
        self._looked, self._looked_s = self._newest.copy(), self._newest_s

    def _follow_noise(self, moved: NDArray[np.float32]) -> float:
        deviation = 1.4826 * _median(np.abs(moved - _median(moved)))
        noise = min(deviation, _MOST_NOISE)
        self._noise = noise if self._noise is None else self._noise + 0.1 * (noise - self._noise)
        return self._noise


def _median(cells: NDArray[np.float32]) -> float:
    """As numpy's, whose checks take longer than all that is done here."""
    middle = _CELLS[0] * _CELLS[1] // 2
    halves = np.partition(cells.ravel(), (middle - 1, middle))
    return float((halves[middle - 1] + halves[middle]) / 2)


def _cells(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [30, 40] of uint8 [H, W, 3] RGB; every n-th row is enough."""
    import cv2

    rows = image[:: max(1, image.shape[0] // _ROWS)]
    small = cv2.resize(rows, _CELLS, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)
