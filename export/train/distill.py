"""Distilling: a checkpoint teaches a smaller copy of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.errors import UsageError
from edgemm.export.train.finetune import TrainReport, finetune
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.objectives.distilled import Distilled
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.students import student_of


@dataclass(frozen=True)
class Teaching:
    """How a student is made and taught. `hard` is the share of the labels' own loss beside the teacher's."""

    student: str = "half-depth"
    temperature: float = 2.0
    hard: float = 0.5

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that mean nothing."""
        if self.temperature <= 0 or not 0 <= self.hard <= 1:
            raise UsageError("--temperature is above 0, and --hard a share from 0 to 1")


def distill(
    teacher: Path | str,
    data: Path,
    target: Path,
    *,
    teaching: Teaching,
    options: TrainOptions | None = None,
    **more: Any,
) -> TrainReport:
    """Make a student of `teacher` (see `students.student_of`), teach it on `data`, and write it to `target`.

    Takes and raises what `finetune` does. Before and after are the student's: its first figure is that of the teacher's
    layers that stayed.
    """

    def changed(objective: Objective) -> Objective:
        large = objective.model
        objective.model = student_of(large, teaching.student)
        return Distilled(objective, large, temperature=teaching.temperature, hard=teaching.hard)

    return finetune(teacher, data, target, options=options, changed=changed, **more)
