"""An objective around another: the same rows, answers and metrics, another loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, Objective
from edgemm.tasks.class_report import ClassReport


class Wrapped(Objective):
    """What is not said otherwise is `own`'s."""

    def __init__(self, own: Objective) -> None:
        self.own, self.checkpoint, self.options = own, own.checkpoint, own.options
        self.model, self.metric, self.teacher, self.helpers = own.model, own.metric, own.teacher, own.helpers

    def prepare(self, place: Path) -> None:
        self.own.prepare(place)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        return self.own.batch(samples, training=training)

    def weight_of(self, part: Batch) -> int:
        return self.own.weight_of(part)

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        return self.own.loss_of(model, part)

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        return self.own.say(model, samples)

    def expected(self, sample: Sample) -> Any:
        return self.own.expected(sample)

    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        return self.own.judge(expected, said)

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        return self.own.told(sample, said)

    def report(self, expected: Sequence[Any], said: Sequence[Any]) -> ClassReport | None:
        return self.own.report(expected, said)

    def show(self, value: Any) -> str:
        return self.own.show(value)

    def save(self, model: Any, directory: Path) -> None:
        self.own.save(model, directory)
