"""Which object of this frame is which of the last: greedy matching by overlap, with patience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.processing.overlaps import iou
from edgemm.results import DetectedObject

Box = tuple[float, float, float, float]

_LEAST_IOU = 0.3
_PATIENCE = 15


@dataclass
class _Track:
    id: int
    label: str
    box_px: Box
    missed: int = 0


class Tracker:
    """Numbers the objects of one source, frame by frame. The same frames always give the same numbers.

    An object takes the number of the object of its label that it overlaps most, best overlaps first, if their
    intersection over union is `least_iou` or more. A number whose object is not seen is kept for `patience` frames.
    """

    def __init__(self, *, least_iou: float = _LEAST_IOU, patience: int = _PATIENCE) -> None:
        self._least_iou, self._patience = least_iou, patience
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, objects: Sequence[DetectedObject]) -> tuple[int, ...]:
        """The number of each object of the next frame, in their order. Numbers count from 0 and are never reused."""
        pairs = self._pairs(objects)
        found: dict[int, _Track] = {}
        taken: set[int] = set()
        for _, index, track in pairs:
            if index not in found and track.id not in taken:
                found[index] = track
                taken.add(track.id)
        for track in self._tracks:
            track.missed = 0 if track.id in taken else track.missed + 1
        self._tracks = [track for track in self._tracks if track.missed <= self._patience]
        return tuple(self._seen(found.get(i), item) for i, item in enumerate(objects))

    def _pairs(self, objects: Sequence[DetectedObject]) -> list[tuple[float, int, _Track]]:
        """Every object and track that may be one, largest overlap first; ties by order and age."""
        if not objects or not self._tracks:
            return []
        overlaps = iou(*(np.array([of.box_px for of in boxes]) for boxes in (objects, self._tracks)))
        pairs = [
            (float(overlaps[index, number]), index, track)
            for index, item in enumerate(objects)
            for number, track in enumerate(self._tracks)
            if track.label == item.label and overlaps[index, number] >= self._least_iou
        ]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2].id))

    def _seen(self, track: _Track | None, item: DetectedObject) -> int:
        if track is None:
            track = _Track(self._next, item.label, item.box_px)
            self._next += 1
            self._tracks.append(track)
        track.box_px = item.box_px
        return track.id
