"""Events as JSON lines."""

from __future__ import annotations

import json
from typing import IO

from edgemm.live.events import Event, to_json
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits


class JsonlSink:
    """Writes one line an event and flushes it. Essential: when the reader is gone the run ends."""

    name = "json"
    essential = True
    limits = SinkLimits(events=16_384)

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def open(self, context: SinkContext) -> None:
        """Nothing to open: the stream belongs to the caller."""

    def handle(self, item: Item) -> None:
        """Raises OSError (BrokenPipeError) where nobody reads."""
        if isinstance(item, Event):
            self._out.write(json.dumps(to_json(item), ensure_ascii=False) + "\n")
            self._out.flush()

    def close(self) -> None:
        """The stream stays open."""
