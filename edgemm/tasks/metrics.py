"""The metrics of the tasks: pure functions over what was said and what was meant."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

_NOT_A_WORD = re.compile(r"[^\w']+", re.UNICODE)


@dataclass(frozen=True)
class Scores:
    """A metric of a whole set, and of `each` example where it has values for them."""

    total: float
    each: tuple[float, ...] = ()

    @classmethod
    def mean(cls, values: Iterable[float]) -> Self:
        """The metric that is its examples' mean; 0 without any."""
        each = tuple(values)
        return cls(sum(each) / max(1, len(each)), each)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes inside words stay."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return [w for w in (x.strip("'_") for x in _NOT_A_WORD.sub(" ", plain).split()) if w]


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Least number of insertions, deletions and substitutions that turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word error rate in percent: edits over reference words, summed over all examples."""
    pairs = [(words(r), words(h)) for r, h in zip(references, hypotheses, strict=True)]
    total = sum(len(r) for r, _ in pairs)
    edits = sum(edit_distance(r, h) for r, h in pairs)
    if total == 0:
        return 0.0 if edits == 0 else 100.0
    return 100.0 * edits / total


def top1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share in percent of examples whose first label is the right one."""
    equal = [r == h for r, h in zip(references, hypotheses, strict=True)]
    return 100.0 * sum(equal) / len(equal) if equal else 0.0


def recall_at(ranked: Sequence[float], k: int) -> float:
    """Share in percent of what is wanted that stands among the first `k`.

    `ranked` has each item's gain in the order of the ranking; above 0 it is wanted. 0 where nothing is.
    """
    wanted = sum(gain > 0 for gain in ranked)
    return 100.0 * sum(gain > 0 for gain in ranked[:k]) / wanted if wanted else 0.0


def ndcg_at(ranked: Sequence[float], k: int) -> float:
    """Normalised discounted cumulative gain of the first `k`, in percent (Järvelin and Kekäläinen, 2002).

    `ranked` has each item's gain, 0 or more, in the order of the ranking. 0 where nothing is gained.
    """
    best = _dcg(sorted(ranked, reverse=True)[:k])
    return 100.0 * _dcg(ranked[:k]) / best if best else 0.0


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
