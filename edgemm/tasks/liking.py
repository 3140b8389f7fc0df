"""Rows of recommendation data as text, and recall and NDCG over users."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm.tasks.metrics import ndcg_at, recall_at

FIRST = 10


@dataclass(frozen=True)
class Liking:
    """How much a user liked an item: `score`, 0 for not at all. Both are a text or the path of a picture."""

    user: str | Path
    item: str | Path
    score: float


def as_text(liking: Liking) -> str:
    """One line of JSON."""
    return json.dumps({"user": str(liking.user), "item": str(liking.item), "score": liking.score}, ensure_ascii=False)


def ranking_metrics(expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """`recall@10` and `ndcg@10` in percent, means over the users who liked anything.

    `expected` are lines of `as_text`, `said` the score that the model gave to the same user and item.
    """
    users: dict[str, list[tuple[float, float]]] = {}
    for line, score in zip(expected, said, strict=True):
        liking = json.loads(line)
        users.setdefault(liking["user"], []).append((float(score), float(liking["score"])))
    ranked = [[gain for _, gain in sorted(rows, key=lambda row: -row[0])] for rows in users.values()]
    liked = [gains for gains in ranked if any(gain > 0 for gain in gains)]
    count = max(1, len(liked))
    return {
        f"recall@{FIRST}": sum(recall_at(gains, FIRST) for gains in liked) / count,
        f"ndcg@{FIRST}": sum(ndcg_at(gains, FIRST) for gains in liked) / count,
    }
