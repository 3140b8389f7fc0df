"""What the tasks return: frozen, plain, ready for JSON through `dataclasses.asdict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
class DetectedObject:
    """One object of a picture. `box_px` is x0, y0, x1, y1 in pixels of the picture as it was given; `score` is 0…1."""

    label: str
    score: float
    box_px: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detections:
    """The objects of one picture, best first."""

    objects: tuple[DetectedObject, ...]
    model_ms: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """Where a picture, a text or a sound lies in the model's space: `values` float32 [D] of unit length."""

    values: NDArray[np.float32]
    model_ms: float


@dataclass(frozen=True, eq=False)
class RankedItem:
    """One item that was ranked: `index` is its place in what was given, `score` its cosine to the query."""

    index: int
    item: Any
    score: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """Items by their likeness to a query, best first."""

    items: tuple[RankedItem, ...]
    model_ms: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a transcript. Times are seconds from the start of the samples."""

    text: str
    t_start_s: float
    t_end_s: float


@dataclass(frozen=True)
class Word:
    """A word of a transcript with its punctuation and the space before it: joined, words are the text. Times are
    seconds from the start of the samples.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """What was said. `confidence` is the geometric mean of the tokens' probabilities; `words` are there where they were
    asked for.
    """

    text: str
    tokens: tuple[int, ...]
    confidence: float
    segments: tuple[Segment, ...]
    model_ms: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Region:
    """A place that a model named: an object, a line of text. `box_px` is x0, y0, x1, y1 in pixels of the picture as
    it was given, around the `polygons_px` of x, y where there are any.
    """

    label: str
    box_px: tuple[float, float, float, float]
    polygons_px: tuple[tuple[tuple[float, float], ...], ...] = ()


@dataclass(frozen=True)
class Answer:
    """A generated answer. `ttft_ms` is the time to the first token, encoders included; `regions` are the places that
    it names, of models that name places. `heard` is the question as it was heard, where it was spoken.
    """

    text: str
    tokens: tuple[int, ...]
    confidence: float
    ttft_ms: float
    model_ms: float
    regions: tuple[Region, ...] = ()
    heard: str = ""


@dataclass(frozen=True)
class Description:
    """What happens in a clip, in words."""

    text: str
    tokens: tuple[int, ...]
    confidence: float
    model_ms: float


@dataclass(frozen=True)
class Caption:
    """A generated description of one picture."""

    text: str
    tokens: tuple[int, ...]
    confidence: float
    model_ms: float
