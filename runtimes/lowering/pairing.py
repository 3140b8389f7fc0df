"""Outputs whose rows have no order of their own, such as the queries that a detector picks by score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARE = 0.1
"""Share of rows picked by score that may be others below fp32."""

Arrays = Mapping[str, NDArray[Any]]


def in_pairs(original: Arrays, found: Arrays, spare: float = 0.0) -> tuple[Arrays, Arrays]:
    """Two runs of a graph, its outputs [B, N, …] with their rows paired by likeness.

    The share `spare` of the pairs, the least alike, is left out: in another precision the last picked may be others.
    """
    names = list(original)
    widths = np.cumsum([original[n].shape[-1] for n in names])[:-1]
    sides = [np.concatenate([np.asarray(side[n], np.float32) for n in names], -1) for side in (original, found)]
    kept = [paired(a, b, spare) for a, b in zip(*sides, strict=True)]
    joined = (np.stack(rows) for rows in zip(*kept, strict=True))
    first, second = (dict(zip(names, np.split(rows, widths, -1), strict=True)) for rows in joined)
    return first, second


def paired(a: NDArray[Any], b: NDArray[Any], spare: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of a [N, D] and b [N, D], each of `a` with its nearest in `b` that no nearer pair has taken."""
    n = len(a)
    distance = np.stack([np.abs(row - b).max(-1) for row in a])
    distance = np.where(np.isfinite(distance), distance, np.inf)
    rows: list[int] = []
    columns: list[int] = []
    for flat in np.argsort(distance, axis=None, kind="stable"):
        row, column = divmod(int(flat), n)
        if row not in rows and column not in columns:
            rows.append(row)
            columns.append(column)
            if len(rows) == n:
                break
    keep = n - int(n * spare)
    return a[rows[:keep]], b[columns[:keep]]
