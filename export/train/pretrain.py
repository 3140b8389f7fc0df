"""Pretraining: a Frambicus learns from pictures, clips and texts before it learns a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgemm.errors import UsageError
from edgemm.export.train.data import Splits
from edgemm.export.train.finetune import TrainReport, finetune
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.objectives.frambicus import Frambicus
from edgemm.export.train.objectives.pretraining import OBJECTIVES, OF_PICTURES, Pretraining
from edgemm.export.train.options import TrainOptions


@dataclass(frozen=True)
class Lessons:
    """What is learned: objectives with their weights, and the share of cells that are hidden."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECTIVES, 1.0))
    hidden: float = 0.5


def pretrain(
    checkpoint: Path | str,
    data: Path,
    target: Path,
    *,
    lessons: Lessons | None = None,
    options: TrainOptions | None = None,
    **more: Any,
) -> TrainReport:
    """Train a Frambicus by the objectives of `lessons`; take and raise what `finetune` does.

    Raises UsageError for a checkpoint of another family, and for an objective that there is not.
    """
    chosen = lessons or Lessons()

    def changed(objective: Objective, splits: Splits, work: Path) -> tuple[Objective, Splits]:
        if not isinstance(objective, Frambicus):
            raise UsageError("only a Frambicus is pretrained", hint="use edgemm finetune for other families")
        return Pretraining(objective, chosen.weights, hidden=chosen.hidden), splits

    about = {"lessons": asdict(chosen)}
    fields = ("image", "video", "text") if OF_PICTURES in chosen.weights else ("text",)
    return finetune(checkpoint, data, target, options=options, changed=changed, about=about, fields=fields, **more)
