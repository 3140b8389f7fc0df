"""mAP of boxes as COCO defines it: IoU 0.50 to 0.95, 101 points of recall, at most 100 objects a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemm.processing.overlaps import iou

Floats = NDArray[np.float64]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100


@dataclass(frozen=True)
class Box:
    """An object that is there, or one that was found with a `score`. Corners are x0, y0, x1, y1 in pixels."""

    label: str
    box_px: tuple[float, float, float, float]
    score: float = 1.0


def as_text(boxes: Sequence[Box]) -> str:
    """The boxes as JSON, for the line of an example."""
    return json.dumps([{"label": b.label, "score": b.score, "box_px": b.box_px} for b in boxes], ensure_ascii=False)


def from_text(text: str) -> list[Box]:
    """The inverse of `as_text`."""
    return [Box(b["label"], tuple(b["box_px"]), b["score"]) for b in json.loads(text or "[]")]


def mean_average_precision(truth: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> dict[str, float]:
    """`map` (mean over IoUs and the labels that are there) and `map50`, in percent, over pictures."""
    labels = sorted({box.label for boxes in truth for box in boxes})
    if not labels:
        return {"map": 0.0, "map50": 0.0}
    precisions = np.stack([_average_precision(label, truth, found) for label in labels])
    return {"map": 100 * float(precisions.mean()), "map50": 100 * float(precisions[:, 0].mean())}


def _average_precision(label: str, truth: Sequence[Sequence[Box]], found: Sequence[Sequence[Box]]) -> Floats:
    """[IoUs] of one label."""
    hits, scores, there = [], [], 0
    for real, said in zip(truth, found, strict=True):
        wanted = [box for box in real if box.label == label]
        best = sorted((box for box in said if box.label == label), key=lambda box: -box.score)[:MOST]
        there += len(wanted)
        scores += [box.score for box in best]
        hits.append(_hits(wanted, best))
    order = np.argsort(-np.array(scores), kind="stable")
    right = np.concatenate(hits, 1)[:, order]
    return np.array([_area(row, there) for row in right])


def _hits(wanted: Sequence[Box], best: Sequence[Box]) -> NDArray[np.bool_]:
    """[IoUs, found]: which of one picture's boxes, best first, is one that is there and was not taken yet."""
    hits = np.zeros((len(IOUS), len(best)), np.bool_)
    if not wanted or not best:
        return hits
    overlap = iou(np.array([b.box_px for b in best], np.float64), np.array([w.box_px for w in wanted], np.float64))
    for row, least in enumerate(IOUS):
        free = np.ones(len(wanted), np.bool_)
        for column, own in enumerate(overlap):
            # Of equals the last, as COCO's own code has it.
            candidates = np.where(free & (own >= min(least, 1 - 1e-10)), own, -1.0)
            pick = len(wanted) - 1 - int(np.argmax(candidates[::-1]))
            if candidates[pick] >= 0:
                free[pick], hits[row, column] = False, True
    return hits


def _area(right: NDArray[np.bool_], there: int) -> float:
    """Mean of the precision at 101 recalls; beyond the reached recall it is 0."""
    if not len(right):
        return 0.0
    true = np.cumsum(right)
    recall = true / there
    precision = true / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(right), envelope[np.minimum(at, len(right) - 1)], 0.0).mean())
