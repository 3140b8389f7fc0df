"""What a detector finds in the frames of a memory, and the arithmetic of it: counts, orders, sides, changes.

A small text decoder copies what lies in its memory and learns to count, to order and to compare slowly, so that what
follows of each object from all others stands beside it. Training and the device use this one implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.processing.overlaps import iou

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SURE = 0.5  # from here on something is there
OVERLAP, OVERLAP_ALIKE = 0.5, 0.3  # intersection over union from which two finds, or two of one label, are one
_MOST, _ALIKE = 8, 6  # objects, and objects of one label or labels, that are told apart; more count as so many
_FULL = (0.3, 0.3, 0.3, 0.3, 0.25, 0.25, 0.6, 0.6)  # what counts as one whole change of each kind
CHANGES = ("moves left", "moves right", "moves up", "moves down", "appears", "disappears", "grows", "shrinks")
_CHANGED = 2 * len(CHANGES) + 1
FACTS = 3 + 3 * _MOST + 4 * _ALIKE + 4 + _CHANGED
"""Numbers that are said of each object: see `_placed` and `_changed`."""


@dataclass(frozen=True, eq=False)
class Objects:
    """What is found in F frames, up to k in each, surest first.

    `queries` and `labels` [F, k] of the detector, `there` [F, k], 0 where nothing more was found, and `facts`
    [F, k, FACTS].
    """

    queries: Ints
    labels: Ints
    there: Ints
    facts: Floats


def objects_of(logits: Sequence[NDArray[Any]], boxes: Sequence[NDArray[Any]], count: int) -> Objects:
    """Of each frame the detector's logits [Q, labels + 1], "nothing" last, and boxes [Q, 4] (centre x, centre y,
    width, height in 0…1) → up to `count` objects of each.
    """
    frames = len(logits)
    found = Objects(
        np.zeros((frames, count), np.int64),
        np.zeros((frames, count), np.int64),
        np.zeros((frames, count), np.int64),
        np.zeros((frames, count, FACTS), np.float32),
    )
    placed: list[tuple[Ints, Floats]] = []
    for frame, (values, own) in enumerate(zip(logits, boxes, strict=True)):
        values, own = np.asarray(values, np.float32), np.asarray(own, np.float32)
        labels = values[:, :-1].argmax(-1)
        rows = _separate(values, own, labels)[:count]
        here = slice(0, len(rows))
        found.queries[frame, here], found.labels[frame, here], found.there[frame, here] = rows, labels[rows], 1
        placed.append((labels[rows], own[rows]))
        found.facts[frame, here, :-_CHANGED] = _placed(*placed[-1])
    if frames > 1:
        for label, change in _changed(placed).items():
            found.facts[(found.labels == label) & (found.there != 0), -_CHANGED:] = change
    return found


def _separate(logits: Floats, boxes: Floats, labels: Ints) -> Ints:
    """The queries that found something, surest first, without those that found what a surer one did."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    nothing = shifted[:, -1] / shifted.sum(-1)
    order = np.argsort(nothing, kind="stable")
    order = order[nothing[order] <= 1 - SURE]
    middle, half = boxes[order, :2], boxes[order, 2:] / 2
    corners = np.concatenate((middle - half, middle + half), axis=1)
    alike = labels[order][:, None] == labels[order]
    double = iou(corners, corners) > np.where(alike, OVERLAP_ALIKE, OVERLAP)
    kept: list[int] = []
    for i in range(len(order)):
        if not double[i, kept].any():
            kept.append(i)
    chosen: Ints = order[kept].astype(np.int64)
    return chosen


def _placed(labels: Ints, boxes: Floats) -> Floats:
    """What follows of each object from the others of its picture, [n, FACTS − what `_changed` says]:

    its middle and area; one-hot its place from the left, from the top, and how many there are; how many of its label
    and which of these it is from the left; which label it is from the left and of how many; the side of the picture.
    """
    middle = boxes[:, :2] * 2 - 1
    left, top = (_ranks(boxes[:, axis]) for axis in (0, 1))
    alike = labels[:, None] == labels
    before = left[:, None] > left
    first = np.where(alike, left, len(labels)).min(1, initial=len(labels)) if len(labels) else left
    groups = np.unique(first)
    across = np.abs(middle[:, 0]) > np.abs(middle[:, 1])
    side = np.where(across, middle[:, 0] > 0, 2 + (middle[:, 1] > 0))
    parts = (
        middle,
        np.sqrt(boxes[:, 2:].prod(-1, keepdims=True)),
        _one_hot(left, _MOST),
        _one_hot(top, _MOST),
        _one_hot(np.full(len(labels), len(labels) - 1), _MOST),
        _one_hot(alike.sum(1) - 1, _ALIKE),
        _one_hot((alike & before).sum(1), _ALIKE),
        _one_hot(np.searchsorted(groups, first), _ALIKE),
        _one_hot(np.full(len(labels), len(groups) - 1), _ALIKE),
        _one_hot(side, 4),
    )
    return np.concatenate(parts, axis=1).astype(np.float32)


def _changed(placed: Sequence[tuple[Ints, Floats]]) -> dict[int, Floats]:
    """Of each label in several frames, how much of each of CHANGES it did (1: wholly), one-hot which it did most, and
    whether it did more than any other label.
    """
    frames = len(placed)
    tracks: dict[int, list[tuple[int, Floats]]] = {}
    for frame, (labels, boxes) in enumerate(placed):
        for label in np.unique(labels):
            tracks.setdefault(int(label), []).append((frame, boxes[labels == label][0]))
    done = {label: _done(track, frames) for label, track in tracks.items()}
    most = max(done, key=lambda label: float(done[label].max())) if done else None
    changes = {}
    for label, amounts in done.items():
        which = np.zeros(len(CHANGES))
        which[amounts.argmax()] = amounts.max() > 0.5
        changes[label] = np.concatenate((amounts, which, [label == most])).astype(np.float32)
    return changes


def _done(track: Sequence[tuple[int, Floats]], frames: int) -> Floats:
    """How much of each of CHANGES the boxes of one label show, each in −2…2."""
    times = np.array([frame for frame, _ in track], np.float64)
    boxes = np.stack([box for _, box in track]).astype(np.float64)
    seen = np.stack((boxes[:, 0], boxes[:, 1], np.log(boxes[:, 2:].prod(-1).clip(min=1e-6))), axis=1)
    ways = np.zeros(3)
    if len(track) > 2:
        apart = times - times.mean()
        ways = (apart[:, None] * seen).sum(0) / np.square(apart).sum() * (frames - 1)
    before, after = times[0] / frames, (frames - 1 - times[-1]) / frames
    late, early = after < _FULL[4] / 2, before < _FULL[4] / 2
    amounts = np.array([
        -ways[0], ways[0], -ways[1], ways[1], before if late else 0, after if early else 0, ways[2], -ways[2],
    ])  # fmt: skip
    result: Floats = (amounts / _FULL).clip(-2, 2).astype(np.float32)
    return result


def _ranks(values: Floats) -> Ints:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values))
    return ranks


def _one_hot(values: NDArray[Any], size: int) -> Floats:
    return np.eye(size, dtype=np.float32)[np.minimum(np.asarray(values, np.int64), size - 1)]
