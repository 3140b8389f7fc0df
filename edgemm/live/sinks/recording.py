"""The run as an MCAP recording: pictures, sound, events, and what became of every frame."""

from __future__ import annotations

from pathlib import Path

from edgemm.live.events import DetectionsEvent, ErrorEvent, Event, to_json
from edgemm.live.frames import AudioBlock, Frame, FrameOutcome, Packet
from edgemm.live.recording import McapRecorder
from edgemm.live.said import said, scored
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits


class McapSink:
    """Writes `path` from the first picture or sound on: a run that saw nothing leaves no file.

    Pictures are kept as their source encodes them (H.264, H.265, JPEG); of a source that gives pixels, the ones that
    were looked at are kept exactly, as PNG, and the others that came to the model's turn as JPEG. So a replay sees what
    was seen.
    """

    name = "mcap"
    essential = True
    limits = SinkLimits(events=4096, frames=16, blocks=1024, packets=600)

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._context: SinkContext | None = None
        self._recorder: McapRecorder | None = None
        self._before: list[Event] = []

    def open(self, context: SinkContext) -> None:
        """Remembers the pipeline's clock; the file is opened later."""
        self._context = context

    def handle(self, item: Item) -> None:
        """Raises StorageError where the disk is full or not writable."""
        if self._recorder is None and isinstance(item, Event):
            self._before = [*self._before[:1], *self._before[1:][-99:], item]
            return
        if isinstance(item, Frame) and item.origin is not None:
            return
        recorder = self._recorder or self._begin()
        if isinstance(item, Frame):
            recorder.write_frame(item)
        elif isinstance(item, AudioBlock):
            recorder.write_audio(item)
        elif isinstance(item, Packet):
            recorder.write_packet(item)
        elif isinstance(item, FrameOutcome):
            recorder.write_outcome(item)
        else:
            self._event(recorder, item)

    def close(self) -> None:
        """Writes the index."""
        if self._recorder is not None:
            self._recorder.close()

    def _event(self, recorder: McapRecorder, event: Event) -> None:
        """The event, and what of it can be looked at."""
        assert self._context is not None
        recorder.write_event(to_json(event), event.t_s)
        text = said(event)
        if text:
            recorder.write_text(text, event.type, event.t_s, error=isinstance(event, ErrorEvent))
        if isinstance(event, DetectionsEvent) and event.source and not self._context.scaled:
            objects = [(scored(found), found.box_px) for found in event.objects]
            recorder.write_boxes(event.source, objects, event.t_capture_s)

    def _begin(self) -> McapRecorder:
        assert self._context is not None
        self._recorder = McapRecorder(self._path, wall_offset_s=self._context.wall_offset_s, run=True)
        for event in self._before:
            self._event(self._recorder, event)
        self._before = []
        return self._recorder
