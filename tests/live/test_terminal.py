"""The view in a terminal: what is drawn of a known state, and that drawing holds up nobody."""

from __future__ import annotations

import io
import threading
import time
from collections import deque

import pytest
from rich.console import Console

from edgemm.live import events as ev
from edgemm.live.events import Quantiles, SourceStats, TrackedObject
from edgemm.live.sinks.base import SinkContext
from edgemm.live.sinks.terminal import REDRAW_EVERY_S, Glance, TerminalSink, draw, sparkline, usable
from edgemm.results import Label

CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)
STATS = ev.StatsEvent(
    t_s=7.0, fps=11.5, latency_ms=Quantiles(60.0, 90.0, 120.0), overhead_ms=Quantiles(), stages_ms={}, rss_mb=500.0,
    sources={
        "camera": SourceStats(captured=175, processed=80, dropped={"superseded": 90, "stale": 4}, in_flight=1),
        "mic": SourceStats(audio_s=7.0, audio_gaps=2),
    },
)  # fmt: skip


def caption(text: str, latency_ms: float = 80.0, **more: object) -> ev.CaptionEvent:
    fields = {"source": "camera", "t_s": 1.0} | more
    return ev.CaptionEvent(
        text=text, confidence=0.8, frames=(1,), t_capture_s=1.0, model_ms=1.0, latency_ms=latency_ms, **fields
    )


def transcript(text: str, *, final: bool) -> ev.TranscriptEvent:
    return ev.TranscriptEvent(
        source="mic", utterance=0, text=text, final=final, stable_chars=0, t_start_s=0.0, t_end_s=1.0, latency_ms=1.0
    )


def answer(number: int, question: str, text: str, *, whole: bool) -> ev.Event:
    kind = ev.AnswerEvent if whole else ev.AnswerDeltaEvent
    return kind(
        question_id=number, question=question, text=text, frames=(1,), t_capture_s=1.0, ttft_ms=1.0, model_ms=1.0,
        latency_ms=1.0,
    )  # fmt: skip


def detections(count: int) -> ev.DetectionsEvent:
    objects = tuple(TrackedObject(f"cup{n}", 0.9, (10.0, 20.4, 300.0, 200.0), n) for n in range(count))
    return ev.DetectionsEvent(source="camera", objects=objects, frame=1, t_capture_s=1.0, model_ms=1.0, latency_ms=30.0)


def labels(name: str) -> ev.LabelsEvent:
    return ev.LabelsEvent(
        source="camera", labels=(Label(name, 0.751),), frame=1, t_capture_s=1.0, model_ms=1.0, latency_ms=40.0
    )


FULL = [
    ev.StartedEvent(bundle="kitchen", config={}, wall_offset_s=0.0, runtime={}, precision={}),
    ev.StatusEvent(source="camera", state="live"),
    ev.StatusEvent(source="mic", state="live"),
    labels("espresso"),
    caption("an espresso on a wooden table"),
    detections(2),
    transcript("He might even have been made amiable himself.", final=True),
    transcript("Unless to be", final=False),
    answer(0, "what is it?", "an espresso", whole=True),
    answer(1, "is it hot?", "yes, ", whole=False),
    answer(1, "is it hot?", "it is", whole=False),
    ev.DescriptionEvent(text="the camera closes in", t_start_s=0.0, t_end_s=1.0, frames=(1,)),
    ev.ErrorEvent(code="stuck", message="the model is stuck"),
    STATS,
]


def drawn(events: list[ev.Event], columns: int) -> list[str]:
    glance = Glance()
    for event in events:
        glance.update(event)
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    with console.capture() as captured:
        console.print(draw(glance, columns))
    return captured.get().splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_everything_is_shown_at_any_width(columns: int) -> None:
    lines = drawn(FULL, columns)
    assert {len(line) for line in lines} == {columns}
    # What is too long for its line goes on in the next one.
    text = " ".join("".join(line.strip("│") for line in lines).split())
    for wanted in (
        "kitchen  7 s", "an espresso on a wooden table", "espresso  0.75", "cup0 #0  0.90", "10,20 – 300,200",
        "amiable himself.”", "Unless to be …", "what is it?", "yes, it is", "the camera closes in", "is stuck",
        "175 captured, 80 processed", "90 superseded", "1 in flight", "7.0 s of sound, 2 gaps", "30 ms, 11.5 fps",
    ):  # fmt: skip
        assert " ".join(wanted.split()) in text or columns == 40
    for name in ("sees", "finds", "heard", "hears", "asked", "answers", "error", "camera", "mic", "latency"):
        assert any(line.startswith(f"│ {name} ") for line in lines)


@pytest.mark.parametrize("columns", [1, 8, 20])
def test_a_very_narrow_terminal_breaks_nothing(columns: int) -> None:
    assert all(len(line) <= max(columns, 4) for line in drawn(FULL, columns))


def test_nothing_is_known_yet() -> None:
    assert "edgemm" in drawn([], 80)[0]


def test_the_final_transcript_ends_the_partial_one() -> None:
    text = "\n".join(drawn([transcript("he mi", final=False), transcript("He might.", final=True)], 80))
    assert "“He might.”" in text
    assert "he mi " not in text


def test_an_empty_final_forgets_nothing() -> None:
    text = "\n".join(drawn([transcript("He might.", final=True), transcript("", final=True)], 80))
    assert "“He might.”" in text


def test_several_cameras_are_told_apart() -> None:
    text = "\n".join(drawn([caption("a cup", source="camera.0"), caption("a cat", source="camera.1")], 80))
    assert "camera.0 a cup" in text
    assert "camera.1 a cat" in text


def test_lists_are_bounded() -> None:
    lines = drawn([detections(40), *(answer(n, f"q{n}?", "a", whole=True) for n in range(50))], 80)
    assert len(lines) < 20
    assert any("and 34 more" in line for line in lines)
    assert any("q49?" in line for line in lines)


def test_sparkline() -> None:
    assert sparkline(deque([0.0, 50.0, 100.0]), 10) == "▁▅█"
    assert sparkline(deque([1.0, 2.0, 4.0, 8.0]), 2) == "▅█"
    assert sparkline(deque([0.0, 0.0]), 5) == "▁▁"
    assert sparkline(deque([1.0]), 0) == ""


class CountingScreen(io.StringIO):
    """A terminal that counts how often it is drawn on."""

    draws = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.draws += "╭" in text
        return super().write(text)


def test_it_is_drawn_a_few_times_a_second_and_the_last_one_is_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = CountingScreen()
    sink = TerminalSink(screen)
    sink.open(CONTEXT)
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < 0.55:
        sink.handle(caption(f"picture at {passed_s:.3f}"))
        time.sleep(0.001)
    sink.handle(caption("the very last one"))
    sink.close()
    took_s = time.monotonic() - began_s
    assert 2 <= screen.draws <= took_s / REDRAW_EVERY_S + 4  # the first, and up to two at the end
    assert "the very last one" in screen.getvalue()


class StoppedScreen(CountingScreen):
    """A terminal that takes nothing until it goes on, as after Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def write(self, text: str) -> int:
        self.goes_on.wait()
        return super().write(text)


def test_a_terminal_that_takes_nothing_holds_up_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = StoppedScreen()
    sink = TerminalSink(screen)
    sink.open(CONTEXT)
    screen.goes_on.clear()
    for n in range(3000):
        sink.handle(caption(f"picture {n}"))
    assert "picture" not in screen.getvalue()
    screen.goes_on.set()
    sink.close()
    assert "picture 2999" in screen.getvalue()


@pytest.mark.parametrize(("term", "wanted"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_where_it_can_be_drawn(term: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    assert usable(CountingScreen()) == wanted
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not usable(io.StringIO())
