"""mAP against pycocotools, on seeded boxes and on the cases that are easy to get wrong."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgemm.tasks.boxes import Box, mean_average_precision

LABELS = ("a", "b", "c")
TOLERANCE = 1e-6


def coco(truth, found):
    """The two figures of COCO's own code, in percent."""
    ids = {name: i + 1 for i, name in enumerate(LABELS)}
    size = lambda box: (box[2] - box[0], box[3] - box[1])  # noqa: E731
    entries = [
        {"id": n + 1, "image_id": picture, "category_id": ids[b.label], "iscrowd": 0,
         "bbox": [*b.box_px[:2], *size(b.box_px)], "area": float(np.prod(size(b.box_px)))}
        for n, (picture, b) in enumerate((p, b) for p, boxes in enumerate(truth) for b in boxes)
    ]  # fmt: skip
    said = [
        {"image_id": p, "category_id": ids[b.label], "bbox": [*b.box_px[:2], *size(b.box_px)], "score": b.score}
        for p, boxes in enumerate(found) for b in boxes
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO()
        real.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": i, "name": n} for n, i in ids.items()],
            "annotations": entries,
        }
        real.createIndex()
        judge = COCOeval(real, real.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * judge.stats[0], 100 * judge.stats[1]


def boxes(rng, n, near=()):
    made = []
    for i in range(n):
        if i < len(near):
            corners = np.array(near[i].box_px) + rng.normal(0, 3, 4)
            label = near[i].label if rng.random() < 0.9 else str(rng.choice(LABELS))
        else:
            low = rng.uniform(0, 150, 2)
            corners, label = np.concatenate([low, low + rng.uniform(10, 90, 2)]), str(rng.choice(LABELS))
        corners[2:] = np.maximum(corners[2:], corners[:2] + 1)
        made.append(Box(label, tuple(map(float, corners)), float(rng.random())))
    return made


@pytest.mark.parametrize("seed", range(6))
def test_seeded_boxes_equal_pycocotools(seed):
    rng = np.random.default_rng(seed)
    truth = [boxes(rng, int(rng.integers(0, 6))) for _ in range(12)]
    found = [boxes(rng, len(real) + int(rng.integers(0, 5)), near=real) for real in truth]
    made = mean_average_precision(truth, found)
    assert (made["map"], made["map50"]) == pytest.approx(coco(truth, found), abs=TOLERANCE)
    assert 1 < made["map"] < 99


BOX = (10.0, 10.0, 50.0, 50.0)
CASES = {
    "all right": ([[Box("a", BOX)]], [[Box("a", BOX, 0.9)]], 100.0),
    "twice": ([[Box("a", BOX)]], [[Box("a", BOX, 0.9), Box("a", BOX, 0.8)]], 100.0),
    "wrong one first": ([[Box("a", BOX)]], [[Box("a", (60, 60, 90, 90), 0.9), Box("a", BOX, 0.8)]], 50.0),
    "other label": ([[Box("a", BOX)]], [[Box("b", BOX, 0.9)]], 0.0),
    "a label that is not there": ([[Box("a", BOX)], []], [[Box("a", BOX, 0.9)], [Box("c", BOX, 0.9)]], 100.0),
    "half of two": ([[Box("a", BOX)], [Box("a", BOX)]], [[Box("a", BOX, 0.9)], []], 100 * 51 / 101),
}


@pytest.mark.parametrize("name", CASES)
def test_small_cases(name):
    truth, found, expected = CASES[name]
    assert mean_average_precision(truth, found)["map"] == pytest.approx(expected)
    assert coco(truth, found)[0] == pytest.approx(expected)


def test_nothing_there_or_nothing_found():
    assert mean_average_precision([[]], [[Box("a", BOX, 0.9)]]) == {"map": 0.0, "map50": 0.0}
    assert mean_average_precision([[Box("a", BOX)]], [[]]) == {"map": 0.0, "map50": 0.0}
