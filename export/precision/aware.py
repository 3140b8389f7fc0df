"""Checkpoints that were trained for a precision: their matrices lie on its grid, and must not be moved off it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgemm.bundle.manifest import Precision
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.precision.gates import Choice

NOTE = "quantization_aware.json"
"""Beside the weights: `precision`."""


def as_trained(choice: Choice, checkpoints: Iterable[Checkpoint], precision: Precision) -> Choice:
    """`choice` without smoothing, which scales matrices, where one of the checkpoints was trained for `precision`."""
    trained = any(c.json(NOTE).get("precision") == precision for c in checkpoints)
    return replace(choice, smooth=False) if trained else choice
