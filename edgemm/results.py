"""What the tasks return: frozen, plain, ready for JSON through `dataclasses.asdict`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One class of a tagger. `score` is a probability in 0…1."""

    label: str
    score: float


@dataclass(frozen=True)
class Labels:
    """The classes of one picture or sound, best first."""

    labels: tuple[Label, ...]
    model_ms: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a transcript. Times are seconds from the start of the samples."""

    text: str
    t_start_s: float
    t_end_s: float


@dataclass(frozen=True)
class Transcript:
    """What was said. `confidence` is the geometric mean of the tokens' probabilities."""

    text: str
    tokens: tuple[int, ...]
    confidence: float
    segments: tuple[Segment, ...]
    model_ms: float


@dataclass(frozen=True)
class Answer:
    """A generated answer. `ttft_ms` is the time to the first token, encoders included."""

    text: str
    tokens: tuple[int, ...]
    confidence: float
    ttft_ms: float
    model_ms: float


@dataclass(frozen=True)
class Caption:
    """A generated description of one picture."""

    text: str
    tokens: tuple[int, ...]
    confidence: float
    model_ms: float
