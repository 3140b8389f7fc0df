"""One annotated picture, left at the end of a run."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from edgemm.errors import StorageError, UsageError
from edgemm.live.events import Event
from edgemm.live.frames import Frame
from edgemm.live.overlay import Overlay, Results
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

SUFFIXES = (".jpg", ".jpeg", ".png")


class PictureSink:
    """Keeps the frame with the best result and writes it at the end, whole or not at all.

    The best frame is the one whose first label is surest; one that also shows an answer, or what
    was said, is better than one that does not.
    """

    name = "picture"
    essential = True
    limits = SinkLimits(events=4096, frames=8)

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"{self._path.name} is not a picture's name",
                hint=f"end it in {', '.join(SUFFIXES)}",
            )
        self._results = Results()
        self._best: tuple[float, Frame, Results] | None = None

    def open(self, context: SinkContext) -> None:
        """Nothing to open."""

    def handle(self, item: Item) -> None:
        """Follows results and weighs frames; nothing is drawn yet."""
        if isinstance(item, Event):
            self._results.update(item)
        elif isinstance(item, Frame):
            worth = self._worth(item)
            if self._best is None or worth > self._best[0]:
                kept = copy.copy(self._results)
                kept.labels = dict(self._results.labels)
                kept.detections = dict(self._results.detections)
                kept.captions = dict(self._results.captions)
                self._best = (worth, item, kept)

    def close(self) -> None:
        """Draws and writes. Raises StorageError."""
        import cv2

        if self._best is None:
            return
        _, frame, results = self._best
        image = Overlay().draw(frame, results)
        done, data = cv2.imencode(self._path.suffix.lower(), image[:, :, ::-1])
        if not done:
            raise StorageError(f"{self._path} cannot be encoded")
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            part.write_bytes(data.tobytes())
            os.replace(part, self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from error

    def _worth(self, frame: Frame) -> float:
        event = self._results.labels.get(frame.source)
        own = event is not None and event.frame == frame.id and event.labels
        worth = event.labels[0].score if own and event is not None else 0.0
        seen = self._results.detections.get(frame.source)
        worth += seen.objects[0].score if seen is not None and seen.frame == frame.id and seen.objects else 0.0
        worth += 0.5 if self._results.transcript(frame.t_capture_s) else 0.0
        return worth + (1.0 if self._results.answer(frame.t_capture_s)[1] else 0.0)
