"""Overlaps of boxes."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.processing.overlaps import iou


def test_every_pair_of_boxes():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], np.float32)
    assert iou(boxes, boxes[:2]) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1], [0, 1 / 3]]))


def test_boxes_without_area_overlap_nothing():
    point = np.array([[5, 5, 5, 5]], np.float32)
    assert iou(point, point) == 0
    assert iou(point[:0], point).shape == (0, 1)
