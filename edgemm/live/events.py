"""The events of the live pipeline, one frozen dataclass a type, and their JSON.

Field names and units are the frozen contract of `run --json`. Times (`*_s`) are seconds on the
pipeline's clock, `id` counts from 0 over all events of a run. An event is made without `id` and
`t_s`; the pipeline stamps both at emission.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

from edgemm.results import Label

SCHEMA_VERSION = 1

StatusState = Literal["opening", "live", "stalled", "lost", "reconnected", "ended"]
SpeechEdge = Literal["start", "end"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every event has. `source` is None where no single source is meant."""

    type: ClassVar[str] = ""
    id: int = -1
    t_s: float = 0.0
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class StartedEvent(Event):
    """The first event. `wall_offset_s` added to any `t_s` gives Unix time; `runtime` and
    `precision` are by component."""

    type: ClassVar[str] = "started"
    schema_version: int = SCHEMA_VERSION
    bundle: str
    config: dict[str, Any]
    wall_offset_s: float
    runtime: dict[str, str]
    precision: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StatusEvent(Event):
    """A source changed its state; `reason` is one line for people."""

    type: ClassVar[str] = "status"
    state: StatusState
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelsEvent(Event):
    """The classes of one frame, best first."""

    type: ClassVar[str] = "labels"
    labels: tuple[Label, ...]
    frame: int
    t_capture_s: float
    model_ms: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class CaptionEvent(Event):
    """One sentence about the newest frames. `confidence` is the geometric mean of the tokens'
    probabilities; `t_capture_s` is of the newest frame."""

    type: ClassVar[str] = "caption"
    text: str
    confidence: float | None
    frames: tuple[int, ...]
    t_capture_s: float
    model_ms: float
    latency_ms: float


@dataclass(frozen=True)
class TrackedObject:
    """`box_px` is x0, y0, x1, y1 in pixels of the frame; `track_id` is None where untracked."""

    label: str
    score: float
    box_px: tuple[float, float, float, float]
    track_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class DetectionsEvent(Event):
    """The objects of one frame, best first."""

    type: ClassVar[str] = "detections"
    objects: tuple[TrackedObject, ...]
    frame: int
    t_capture_s: float
    model_ms: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class SpeechEvent(Event):
    """Somebody began or ceased to speak. `utterance` counts from 0."""

    type: ClassVar[str] = "speech"
    edge: SpeechEdge
    utterance: int


@dataclass(frozen=True, kw_only=True)
class TranscriptEvent(Event):
    """What was said from `t_start_s` to `t_end_s`. Later partials begin with the first `stable_chars` characters of
    this one; the `final` is the decode of the whole utterance and may correct them, and nothing changes it.
    `latency_ms` is the end of the audio that it covers → emitted."""

    type: ClassVar[str] = "transcript"
    utterance: int
    text: str
    final: bool
    stable_chars: int
    t_start_s: float
    t_end_s: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class AnswerDeltaEvent(Event):
    """The next piece of an answer that is still being generated: `text` is the piece alone."""

    type: ClassVar[str] = "answer_delta"
    question_id: int
    question: str
    text: str
    frames: tuple[int, ...]
    t_capture_s: float
    ttft_ms: float | None = None
    model_ms: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerEvent(Event):
    """A whole answer. `ttft_ms` is the time to the first token, encoders included."""

    type: ClassVar[str] = "answer"
    question_id: int
    question: str
    text: str
    frames: tuple[int, ...]
    t_capture_s: float
    ttft_ms: float | None
    model_ms: float | None
    latency_ms: float | None


@dataclass(frozen=True, kw_only=True)
class DescriptionEvent(Event):
    """What happened in a stretch of video."""

    type: ClassVar[str] = "description"
    text: str
    t_start_s: float
    t_end_s: float
    frames: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InterruptedEvent(Event):
    """Work that was given up before its end: `what` names it."""

    type: ClassVar[str] = "interrupted"
    what: str


@dataclass(frozen=True, kw_only=True)
class AudioGapEvent(Event):
    """Sound from `t_start_s` to `t_end_s` is missing."""

    type: ClassVar[str] = "audio_gap"
    t_start_s: float
    t_end_s: float


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Event):
    """Something failed and the pipeline goes on."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds over the run so far; None before the first measurement."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class StageQuantiles:
    """Milliseconds of one stage over the run so far."""

    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class SourceStats:
    """captured == processed + sum(dropped) + in_flight, in frames; sound in seconds."""

    captured: int = 0
    processed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    audio_s: float = 0.0
    audio_gaps: int = 0
    reconnects: int = 0


@dataclass(frozen=True, kw_only=True)
class StatsEvent(Event):
    """Every second. `fps` is processed frames per second since the last one; the quantiles cover
    the run. `latency_ms` is capture → emitted of the vision results, `overhead_ms` the same less
    the model's own time. `sinks_dropped` counts what slow sinks missed, by sink."""

    type: ClassVar[str] = "stats"
    sources: dict[str, SourceStats]
    fps: float
    latency_ms: Quantiles
    overhead_ms: Quantiles
    stages_ms: dict[str, StageQuantiles]
    rss_mb: float
    sinks_dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SummaryEvent(StatsEvent):
    """The last event: the totals over the sources, and `fps` over the run. `first_result_s` is
    counted from the moment when the model is loaded and warm and the sources open; None without
    a result."""

    type: ClassVar[str] = "summary"
    first_result_s: float | None
    duration_s: float
    captured: int
    processed: int
    dropped: dict[str, int]
    in_flight: int
    audio_s: float
    audio_gaps: int
    reconnects: int


EVENT_TYPES: dict[str, type[Event]] = {
    cls.type: cls
    for cls in (
        StartedEvent, StatusEvent, LabelsEvent, CaptionEvent, DetectionsEvent, SpeechEvent,
        TranscriptEvent, AnswerDeltaEvent, AnswerEvent, DescriptionEvent, InterruptedEvent,
        AudioGapEvent, ErrorEvent, StatsEvent, SummaryEvent,
    )
}  # fmt: skip

RESULT_TYPES = frozenset({"labels", "caption", "detections", "transcript", "answer_delta", "answer", "description"})


def to_json(event: Event) -> dict[str, Any]:
    """The JSON object of an event: `type` first, `source` only where one is meant, seconds to a
    tenth of a millisecond, milliseconds to a hundredth, scores to four places."""
    document: dict[str, Any] = {"type": event.type}
    for item in fields(event):
        value = getattr(event, item.name)
        if item.name == "source" and value is None:
            continue
        document[item.name] = _plain(value, _decimals(item.name))
    return document


def _decimals(name: str) -> int:
    if name == "wall_offset_s":
        return 6
    if name.endswith("_px") or name.endswith("_mb"):
        return 1
    return 2 if name.endswith("_ms") or name == "fps" else 4


def _plain(value: Any, decimals: int) -> Any:
    if isinstance(value, float):
        return round(value, decimals)
    if isinstance(value, dict):
        return {str(key): _plain(item, decimals) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item, decimals) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _nested(value, item.name, decimals) for item in fields(value)}
    return value


def _nested(value: Any, name: str, decimals: int) -> Any:
    own = _decimals(name)
    return _plain(getattr(value, name), own if own != 4 else decimals)
