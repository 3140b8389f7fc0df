"""What is seen, heard and said, in a Rerun viewer (https://rerun.io)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemm.errors import SinkError
from edgemm.live.events import CaptionEvent, DetectionsEvent, ErrorEvent, Event, LabelsEvent
from edgemm.live.frames import Frame
from edgemm.live.said import said, scored
from edgemm.live.sinks.address import SinkUrl, need, parse
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

PICTURE_EVERY_S = 0.1  # a viewer keeps every picture that it is sent, and forgets the oldest late
MEMORY = "1GiB"
_HERE, _PORT = "127.0.0.1", 9876
_STARTS_S, _PATIENCE_S, _QUALITY = 10.0, 2.0, 80


class RerunSink:
    """Pictures with their boxes, at most ten a second, texts, and latencies, on the run's own time line.

    `rerun://` starts a viewer that keeps 1 GiB, `rerun://host:port` sends to one that runs, `rerun:///path/run.rrd`
    writes a file that it opens.
    """

    essential = True  # until it is open
    limits = SinkLimits(events=1024, frames=2, latest=frozenset({"stats"}))

    def __init__(self, url: str) -> None:
        self._rerun = need("rerun", "rerun-sdk", "rerun")
        self._url = parse(url, port=_PORT, host="")
        self.name = self._url.shown if self._url.host else url
        self._stream: Any = None
        self._sent_s: dict[str, float] = {}

    def open(self, context: SinkContext) -> None:
        """Finds the viewer, or makes the file. Raises SinkError."""
        stream = self._rerun.RecordingStream("edgemm")
        try:
            if self._url.path and not self._url.host:
                path = Path("/", self._url.path)
                path.touch()
                stream.save(path)
            else:
                url = self._url if self._url.host else _viewer()
                # The library goes on trying for ever, without a word.
                socket.create_connection((url.host, url.port), _PATIENCE_S).close()
                stream.connect_grpc(replace(url, scheme="rerun+http", path="proxy").shown)
        except (OSError, RuntimeError, ValueError) as error:
            raise SinkError(
                f"{self.name} cannot be opened: {getattr(error, 'strerror', None) or error}",
                hint="start a viewer (rerun), or let this start one: rerun://",
            ) from error
        self._stream, self.essential = stream, False

    def handle(self, item: Item) -> None:
        """Sends a picture, or what a result says."""
        if isinstance(item, Frame):
            self._picture(item)
        elif isinstance(item, DetectionsEvent):
            self._at(item.t_capture_s)
            boxes = [found.box_px for found in item.objects]
            names = [scored(found) for found in item.objects]
            shown = self._rerun.Boxes2D(array=boxes, array_format=self._rerun.Box2DFormat.XYXY, labels=names)
            self._stream.log(f"{item.source}/picture/objects", shown if boxes else self._rerun.Clear(recursive=False))
            self._late(item, item.latency_ms)
        elif isinstance(item, Event):
            text = said(item)
            if text:
                self._at(item.t_s)
                level = "ERROR" if isinstance(item, ErrorEvent) else "INFO"
                self._stream.log(f"said/{item.type}", self._rerun.TextLog(text, level=level))
            if isinstance(item, (LabelsEvent, CaptionEvent)):
                self._late(item, item.latency_ms)

    def close(self) -> None:
        """Sends what waits."""
        if self._stream is not None:
            self._stream.flush(timeout_sec=_PATIENCE_S)
            self._stream.disconnect()

    def _picture(self, frame: Frame) -> None:
        import cv2

        if frame.t_capture_s - self._sent_s.get(frame.source, -1.0) < PICTURE_EVERY_S:
            return
        first = frame.source not in self._sent_s
        self._sent_s[frame.source] = frame.t_capture_s
        if first:
            self._arrange()
        self._at(frame.t_capture_s)
        _, jpeg = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        picture = self._rerun.EncodedImage(contents=jpeg.tobytes(), media_type="image/jpeg")
        self._stream.log(f"{frame.source}/picture", picture)

    def _arrange(self) -> None:
        """What a viewer shows where its user has not arranged it: the cameras, beside them texts and latencies."""
        views = self._rerun.blueprint
        cameras = [views.Spatial2DView(origin=f"{source}/picture", name=source) for source in self._sent_s]
        beside = views.Vertical(
            views.TextLogView(origin="said", name="seen, heard, said"),
            views.TimeSeriesView(origin="latency_ms", name="latency, ms"),
        )
        whole = views.Horizontal(views.Grid(*cameras), beside, column_shares=[2, 1])
        self._stream.send_blueprint(views.Blueprint(whole, collapse_panels=True), make_active=False)

    def _late(self, event: Event, latency_ms: float) -> None:
        self._stream.log(f"latency_ms/{event.type}", self._rerun.Scalars(latency_ms))

    def _at(self, t_s: float) -> None:
        self._stream.set_time("run", duration=t_s)


def _viewer() -> SinkUrl:
    """Where a viewer is that was started now, or the one that runs already."""
    program = shutil.which("rerun", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        raise OSError("the program rerun is not there")
    # The package's own way would have it listen on every address.
    command = [program, "--bind", _HERE, "--port", str(_PORT), "--memory-limit", MEMORY, "--hide-welcome-screen"]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + _STARTS_S
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex((_HERE, _PORT)) == 0:
                break
        time.sleep(0.1)
    return SinkUrl("rerun", _HERE, _PORT, "")
