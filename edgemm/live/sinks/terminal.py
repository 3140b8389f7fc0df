"""The run at a glance: one picture in a terminal, redrawn in place."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgemm.live.events import (
    AnswerDeltaEvent,
    AnswerEvent,
    CaptionEvent,
    DescriptionEvent,
    DetectionsEvent,
    ErrorEvent,
    Event,
    LabelsEvent,
    SourceStats,
    StartedEvent,
    StatsEvent,
    StatusEvent,
    SummaryEvent,
    TrackedObject,
    TranscriptEvent,
)
from edgemm.live.overlay import label_name
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.live.sinks.text import summary_table

REDRAW_EVERY_S = 0.2  # one takes 5 ms of a core

_OBJECTS, _ANSWERS, _LATENCIES = 6, 2, 200
_BARS = "▁▂▃▄▅▆▇█"
# Of the panel: its border and padding, and the names of rows.
_FRAME_COLUMNS, _NAME_COLUMNS = 4, 9


class Glance:
    """The newest of everything, followed event by event. Not thread-safe."""

    def __init__(self) -> None:
        self.bundle = ""
        self.t_s = 0.0
        self.states: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.captions: dict[str, str] = {}
        self.objects: dict[str, tuple[TrackedObject, ...]] = {}
        self.description = ""
        self.partial, self.heard = "", ""
        self.answers: dict[int, tuple[str, str]] = {}
        self.error = ""
        self.stats: StatsEvent | None = None
        self.latencies_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._last_capture_s = -1.0

    def update(self, event: Event) -> None:
        """Takes what is new from an event; some types change nothing but the time."""
        self.t_s = event.t_s
        source = event.source or ""
        if isinstance(event, (LabelsEvent, CaptionEvent, DetectionsEvent)):
            self._late(event)
        if isinstance(event, StartedEvent):
            self.bundle = event.bundle
        elif isinstance(event, StatusEvent):
            self.states[source] = event.state
        elif isinstance(event, LabelsEvent):
            first = event.labels[0] if event.labels else None
            self.labels[source] = f"{label_name(first.label)}  {first.score:.2f}" if first else ""
        elif isinstance(event, CaptionEvent):
            self.captions[source] = event.text
        elif isinstance(event, DetectionsEvent):
            self.objects[source] = event.objects
        elif isinstance(event, DescriptionEvent):
            self.description = event.text
        elif isinstance(event, TranscriptEvent):
            self._hear(event)
        elif isinstance(event, (AnswerDeltaEvent, AnswerEvent)):
            self._answer(event)
        elif isinstance(event, ErrorEvent):
            self.error = event.message
        elif isinstance(event, StatsEvent):
            self.stats = event

    def _late(self, event: LabelsEvent | CaptionEvent | DetectionsEvent) -> None:
        """One value a frame, that of its last result."""
        if event.t_capture_s == self._last_capture_s:
            self.latencies_ms.pop()
        self._last_capture_s = event.t_capture_s
        self.latencies_ms.append(event.latency_ms)

    def _hear(self, event: TranscriptEvent) -> None:
        self.partial = "" if event.final else event.text
        if event.final and event.text.strip():
            self.heard = event.text

    def _answer(self, event: AnswerDeltaEvent | AnswerEvent) -> None:
        _, before = self.answers.get(event.question_id, ("", ""))
        text = before + event.text if isinstance(event, AnswerDeltaEvent) else event.text
        self.answers[event.question_id] = event.question, text
        while len(self.answers) > _ANSWERS:
            del self.answers[min(self.answers)]


def draw(glance: Glance, columns: int) -> Panel:
    """What is known as a panel of so many columns."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=_NAME_COLUMNS - 1, no_wrap=True, style="dim")
    grid.add_column(ratio=1, overflow="fold")
    for name, value in [*_results(glance), *_books(glance, columns)]:
        grid.add_row(name, value)
    title = Text(f"{glance.bundle or 'edgemm'}  {glance.t_s:.0f} s")
    return Panel(grid, title=title, title_align="left", width=columns, border_style="dim")


def _results(glance: Glance) -> list[tuple[str, Text]]:
    several = len(glance.captions | glance.labels | glance.objects) > 1
    rows = []
    for source in glance.captions | glance.labels:
        caption, label = glance.captions.get(source), glance.labels.get(source)
        text = Text(caption or label or "", style="cyan")
        if caption and label:
            text.append(f"  ({label})", style="dim")
        rows.append((source if several else "sees", text))
    if glance.description:
        rows.append(("saw", Text(glance.description, style="cyan")))
    found = [item for objects in glance.objects.values() for item in objects]
    for number, item in enumerate(found[:_OBJECTS]):
        rows.append(("" if number else "finds", _object(item)))
    if len(found) > _OBJECTS:
        rows.append(("", Text(f"and {len(found) - _OBJECTS} more", style="dim")))
    if glance.heard:
        rows.append(("heard", Text(f"“{glance.heard}”", style="green")))
    if glance.partial:
        rows.append(("hears", Text(f"{glance.partial} …", style="italic green")))
    for question, answer in glance.answers.values():
        rows.append(("asked", Text(question)))
        rows.append(("answers", Text(answer, style="magenta")))
    if glance.error:
        rows.append(("error", Text(glance.error, style="bold red")))
    return rows


def _object(item: TrackedObject) -> Text:
    x0, y0, x1, y1 = (round(edge) for edge in item.box_px)
    number = "" if item.track_id is None else f" #{item.track_id}"
    text = Text(f"{label_name(item.label)}{number}  {item.score:.2f}")
    return text.append(f"  {x0},{y0} – {x1},{y1}", style="dim")


def _books(glance: Glance, columns: int) -> list[tuple[str, Text]]:
    """What became of every frame, by source, and how late results are."""
    sources = glance.stats.sources if glance.stats else {}
    names = dict.fromkeys([*glance.states, *sources])
    rows = [(name, _source(glance.states.get(name, ""), sources.get(name))) for name in names if name]
    latencies = glance.latencies_ms
    if latencies and glance.stats:
        figures = f"{latencies[-1]:.0f} ms, {glance.stats.fps:.1f} fps"
        room = max(0, columns - _FRAME_COLUMNS - _NAME_COLUMNS - len(figures) - 2)
        rows.append(("latency", Text(sparkline(latencies, room), style="yellow").append(f"  {figures}", style="")))
    return rows


def _source(state: str, counts: SourceStats | None) -> Text:
    said = [state] if state else []
    if counts and counts.captured:
        said.append(f"{counts.captured} captured")
        said.append(f"{counts.processed} processed")
        said += [f"{n} {reason}" for reason, n in counts.dropped.items()]
        said.append(f"{counts.in_flight} in flight")
    if counts and counts.audio_s:
        said.append(f"{counts.audio_s:.1f} s of sound")
        said += [f"{counts.audio_gaps} gaps"] if counts.audio_gaps else []
    if counts and counts.reconnects:
        said.append(f"{counts.reconnects} reconnects")
    return Text(", ".join(said))


def sparkline(values: deque[float], columns: int) -> str:
    """The last values as bars from 0 to the largest of them, one a column."""
    shown = list(values)[-columns:] if columns else []
    top = max(shown, default=0.0)
    return "".join(
        _BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] if top > 0 else _BARS[0] for value in shown
    )


class TerminalSink:
    """Shows a `Glance` on a terminal, at most five times a second; the last one stays, with the summary below it.

    Drawing has a thread of its own, which takes what is newest: a terminal that is slow or stopped (Ctrl-S) holds up
    neither the events nor the run. What other code prints on stderr meanwhile appears above.
    """

    name = "terminal"
    essential = False
    limits = SinkLimits(events=1024, latest=frozenset({"stats"}))

    def __init__(self, out: IO[str]) -> None:
        self._console = Console(file=out, highlight=False)
        self._glance = Glance()
        self._lock = threading.Lock()
        self._changed, self._closing = threading.Event(), threading.Event()
        self._summary: SummaryEvent | None = None
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")
        self._painter = threading.Thread(target=self._paint, name="edgemm-terminal", daemon=True)

    def open(self, context: SinkContext) -> None:
        """Begins to draw."""
        self._live.start()
        self._painter.start()

    def handle(self, item: Item) -> None:
        """Follows an event; it is drawn soon."""
        if isinstance(item, Event):
            with self._lock:
                self._glance.update(item)
            self._summary = item if isinstance(item, SummaryEvent) else None
            self._changed.set()

    def close(self) -> None:
        """Draws for the last time and gives the terminal back."""
        self._closing.set()
        self._changed.set()
        if self._painter.is_alive():
            self._painter.join()
        self._redraw()
        self._live.stop()
        if self._summary is not None:
            self._console.print(summary_table(self._summary))

    def _paint(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that hung up; `close` meets it again and is reported
            while not self._closing.is_set():
                self._changed.wait()
                self._changed.clear()
                self._redraw()
                self._closing.wait(REDRAW_EVERY_S)

    def _redraw(self) -> None:
        with self._lock:
            panel = draw(self._glance, self._console.width)
        self._live.update(panel, refresh=True)


def usable(out: IO[str]) -> bool:
    """Whether a stream is a terminal that can be drawn on (TERM=dumb cannot)."""
    return out.isatty() and not Console(file=out).is_dumb_terminal
