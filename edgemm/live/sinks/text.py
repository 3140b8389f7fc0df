"""Events as lines for people, as they happen, and a table at the end."""

from __future__ import annotations

from collections import Counter
from typing import IO, TYPE_CHECKING, Any

from edgemm.live.events import (
    AnswerEvent,
    AudioGapEvent,
    CaptionEvent,
    DescriptionEvent,
    DetectionsEvent,
    ErrorEvent,
    Event,
    InterruptedEvent,
    LabelsEvent,
    Quantiles,
    StartedEvent,
    StatusEvent,
    SummaryEvent,
    TranscriptEvent,
)
from edgemm.live.overlay import label_name
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

if TYPE_CHECKING:
    from rich.table import Table

_CHANGES_EVERY_S = 0.5
_GUESS = 0.2
_COLOURS = {
    "sees": "cyan", "finds": "cyan", "saw": "cyan", "hears": "green", "answers": "magenta", "error": "bold red",
    "source": "dim",
}  # fmt: skip


class TextSink:
    """Writes to a text stream, coloured where that is a terminal.

    What is seen is written when it changes, at most twice a second, so a picture that stays the same stays one line:
    the first label where it is no mere guess and no caption says more, objects, captions and descriptions each.
    """

    name = "text"
    essential = False
    limits = SinkLimits(events=4096)

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._console: Any = None
        self._told: dict[tuple[str | None, type[Event]], tuple[str, float]] = {}

    def open(self, context: SinkContext) -> None:
        """Takes rich where the stream is a terminal."""
        if self._out.isatty():
            from rich.console import Console

            self._console = Console(file=self._out, highlight=False, soft_wrap=True)

    def handle(self, item: Item) -> None:
        """Writes the line of an event, if it has one."""
        if isinstance(item, SummaryEvent):
            self._write_summary(item)
        elif isinstance(item, LabelsEvent):
            self._labels(item)
        elif isinstance(item, DetectionsEvent):
            self._objects(item)
        elif isinstance(item, (CaptionEvent, DescriptionEvent)):
            word, text = _line(item)
            self._change(item, word, text, text)
        elif isinstance(item, Event):
            word, text = _line(item)
            if text:
                self._write(item, word, text)

    def close(self) -> None:
        """The stream stays open."""

    def _labels(self, event: LabelsEvent) -> None:
        if not event.labels or event.labels[0].score < _GUESS or (event.source, CaptionEvent) in self._told:
            return
        first = event.labels[0]
        self._change(event, "sees", first.label, f"{label_name(first.label)}  {first.score:.2f}")

    def _objects(self, event: DetectionsEvent) -> None:
        """Which labels are there and how often."""
        counts = Counter(label_name(item.label) for item in event.objects)
        text = ", ".join(f"{n} {name}" if n > 1 else name for name, n in sorted(counts.items()))
        if text or (event.source, DetectionsEvent) in self._told:
            self._change(event, "finds", text, text or "nothing")

    def _change(self, event: Event, word: str, said: str, line: str) -> None:
        """Writes `line` where `said` is another than before of this kind and source."""
        key = (event.source, type(event))
        before, t_s = self._told.get(key, (None, -1e9))
        if said != before and event.t_s - t_s >= _CHANGES_EVERY_S:
            self._told[key] = said, event.t_s
            self._write(event, word, line)

    def _write(self, event: Event, word: str, text: str) -> None:
        several = event.source not in (None, "camera", "mic")
        origin = f"{event.source}  " if several else ""
        if self._console is None:
            self._out.write(f"{event.t_s:6.1f} s  {word:<8} {origin}{text}\n")
            self._out.flush()
            return
        from rich.text import Text

        line = Text(f"{event.t_s:6.1f} s  ", style="dim")
        line.append(f"{word:<8} ", style=_COLOURS.get(word, ""))
        self._console.print(line.append(origin + text))

    def _write_summary(self, event: SummaryEvent) -> None:
        if self._console is None:
            rows = summary_rows(event)
            width = max(len(name) for name, _ in rows)
            self._out.write("\n" + "".join(f"{name:<{width}}  {text}\n" for name, text in rows))
            self._out.flush()
            return
        self._console.print()
        self._console.print(summary_table(event))


def summary_table(event: SummaryEvent) -> Table:
    """The summary for a terminal."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in summary_rows(event):
        table.add_row(f"[dim]{name}[/dim]", text)
    return table


def summary_rows(event: SummaryEvent) -> list[tuple[str, str]]:
    """The summary as rows of a table: a name and a value for people."""
    rows = [("ran for", f"{event.duration_s:.1f} s, {event.rss_mb:.0f} MB of memory")]
    if event.first_result_s is not None:
        rows.append(("first result", f"after {event.first_result_s:.2f} s"))
    if event.captured:
        drops = ", ".join(f"{n} {reason}" for reason, n in event.dropped.items()) or "none dropped"
        rows.append(
            ("frames", f"{event.captured} captured, {event.processed} processed, {drops}"
             + (f", {event.in_flight} in flight" if event.in_flight else "")
             + f" ({event.fps:.1f} fps)")
        )  # fmt: skip
    if event.latency_ms.p50 is not None:
        rows.append(("latency", _quantiles(event.latency_ms)))
        rows.append(("overhead", _quantiles(event.overhead_ms)))
    if event.audio_s:
        gaps = f", {event.audio_gaps} gaps" if event.audio_gaps else ", no gaps"
        rows.append(("sound", f"{event.audio_s:.1f} s{gaps}"))
    for name, stage in event.stages_ms.items():
        if name in ("classify", "detect", "caption", "describe", "answer", "transcribe"):
            rows.append((name, f"p50 {stage.p50:.1f} ms, p99 {stage.p99:.1f} ms"))
    return rows


def _quantiles(q: Quantiles) -> str:
    return f"p50 {q.p50:.1f} ms, p95 {q.p95:.1f} ms, p99 {q.p99:.1f} ms"


def _line(event: Event) -> tuple[str, str]:
    if isinstance(event, TranscriptEvent):
        text = f"“{event.text}”" if event.final and event.text.strip() else ""
        return "hears", text
    if isinstance(event, AnswerEvent):
        return "answers", f"{event.text}  ({event.question})"
    if isinstance(event, CaptionEvent):
        return "sees", event.text
    if isinstance(event, DescriptionEvent):
        return "saw", event.text
    if isinstance(event, ErrorEvent):
        return "error", f"{event.message}" + (f" ({event.hint})" if event.hint else "")
    if isinstance(event, StatusEvent):
        return "source", f"{event.source} {event.state}" + (f": {event.reason}" if event.reason else "")
    if isinstance(event, AudioGapEvent):
        return "source", f"{event.t_end_s - event.t_start_s:.2f} s of sound missing"
    if isinstance(event, InterruptedEvent):
        return "given up", event.what
    if isinstance(event, StartedEvent):
        names = ", ".join(sorted(set(event.runtime.values())))
        return "model", event.bundle + (f" on {names}" if names else "")
    return "", ""
