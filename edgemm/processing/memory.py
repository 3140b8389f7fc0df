"""What a memory of pictures holds beside its objects: which classes, picked from what each picture's cells say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_FAINTEST = float(np.log(np.float32(1e-6)))
_MARKS = re.compile(r"[^\w\s'’-]+")


@dataclass(frozen=True, eq=False)
class Classes:
    """What one picture says of every class: log-probabilities in the picture and in its best cell, and that cell."""

    picture: Floats
    cell: Floats
    place: Ints


def classes_of(cell_logits: NDArray[Any]) -> Classes:
    """cell_logits [cells, classes] → what they say of each class. The picture's logits are the mean of its cells'."""
    logits = np.asarray(cell_logits, np.float32)
    cells = np.maximum(_log_softmax(logits), _FAINTEST)
    place = cells.argmax(0)
    best = np.take_along_axis(cells, place[None], 0)[0]
    return Classes(np.maximum(_log_softmax(logits.mean(0)), _FAINTEST), best, place.astype(np.int64))


def concepts_of(frames: Sequence[Classes], count: int) -> tuple[Ints, Floats, Ints]:
    """The `count` likeliest classes of some frames: classes [K], best first, their logs [K, 2] and cells [K].

    Ranked by the product of a class's probability in its best cell and in a whole picture: a cell alone is sure of
    nonsense, and the whole alone loses what is small.
    """
    cells = np.stack([f.cell for f in frames])
    best = cells.max(0)
    # Of cells that are as sure the first, whichever frame it is in.
    places = np.where(cells == best, np.stack([f.place for f in frames]), np.iinfo(np.int64).max).min(0)
    whole = np.max([f.picture for f in frames], axis=0)
    order = np.argsort(-(best + whole), kind="stable")[:count]
    scores = np.stack([best[order], whole[order]], axis=-1).astype(np.float32)
    return order.astype(np.int64), scores, places[order].astype(np.int64)


def before_newest(times_s: Sequence[float]) -> Floats:
    """Times on any clock → seconds before the newest, which is at 0."""
    times = np.asarray(times_s, np.float64)
    before: Floats = (times - times.max()).astype(np.float32)
    return before


def plain_question(text: str) -> str:
    """A question as the training data writes them: lower case, no marks but one question mark at the end.

    Empty where nothing is asked. Of "What colour is it, please." → "what colour is it please?"
    """
    words = " ".join(_MARKS.sub(" ", text.lower().replace("’", "'")).split())
    return f"{words}?" if words else ""


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
