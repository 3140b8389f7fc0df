"""The run as an MCAP recording: frames that were looked at, sound, events."""

from __future__ import annotations

from pathlib import Path

from edgemm.live.events import Event, to_json
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.recording import McapRecorder
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits


class McapSink:
    """Writes `path` from the first frame or sound on: a run that saw nothing leaves no file."""

    name = "mcap"
    essential = True
    limits = SinkLimits(events=4096, frames=16, blocks=1024)

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
            self._before = [*self._before[-99:], item]
            return
        recorder = self._recorder or self._begin()
        if isinstance(item, Frame):
            recorder.write_frame(item)
        elif isinstance(item, AudioBlock):
            recorder.write_audio(item)
        else:
            recorder.write_event(to_json(item), item.t_s)

    def close(self) -> None:
        """Writes the index."""
        if self._recorder is not None:
            self._recorder.close()

    def _begin(self) -> McapRecorder:
        assert self._context is not None
        self._recorder = McapRecorder(self._path, wall_offset_s=self._context.wall_offset_s)
        for event in self._before:
            self._recorder.write_event(to_json(event), event.t_s)
        self._before = []
        return self._recorder
