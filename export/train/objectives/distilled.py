"""Learning from a teacher: its whole distribution at a temperature (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective
from edgemm.tasks.class_report import ClassReport


class Distilled(Objective):
    """An objective whose model also learns what `teacher` makes of the same inputs.

    `hard` is the share of the labels' own loss. The two may differ in depth and width, not in what they say.
    """

    def __init__(self, own: Objective, teacher: Any, *, temperature: float = 2.0, hard: float = 0.5) -> None:
        if type(own).compute is not Objective.compute:
            raise UsageError(f"a {own.plan.model_type} gives no logits to learn from", hint="use edgemm finetune")
        super().__init__(own.checkpoint, own.plan, own.options)
        self.own, self.model, self.metric = own, own.model, own.metric
        self.temperature, self.hard = temperature, hard
        self.teacher = teacher.eval().requires_grad_(False)

    def compute(self, model: Any, batch: Batch) -> torch.Tensor:
        sizes = [max(1, int((part["labels"] != IGNORED).sum())) for part in batch["parts"]]
        losses = [self._both(model, part) * n for part, n in zip(batch["parts"], sizes, strict=True)]
        return torch.stack(losses).sum() / sum(sizes)

    def _both(self, model: Any, part: Batch) -> torch.Tensor:
        outputs = model(**part)
        with torch.no_grad():
            theirs = self.teacher.to(outputs.logits.device)(**part).logits
        labels = part["labels"]
        soft = soft_loss(*self._said(outputs.logits, theirs, labels), self.temperature)
        hard: torch.Tensor = outputs.loss
        return self.hard * hard + (1 - self.hard) * soft

    def _said(self, own: torch.Tensor, theirs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of both [N, V] where something is to be said."""
        if own.ndim == 2:
            return own, theirs
        if self.own.next_token:
            own, theirs = (x[:, -labels.shape[1] :][:, :-1] for x in (own, theirs))
            labels = labels[:, 1:]
        if own.shape[1] != labels.shape[1]:
            # CTC: every moment counts, silence too.
            return own.flatten(0, 1), theirs.flatten(0, 1)
        counted = labels != IGNORED
        return own[counted], theirs[counted]

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        return self.own.batch(samples, training=training)

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        return self.own.say(model, samples)

    def expected(self, sample: Sample) -> Any:
        return self.own.expected(sample)

    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        return self.own.judge(expected, said)

    def report(self, expected: Sequence[Any], said: Sequence[Any]) -> ClassReport | None:
        return self.own.report(expected, said)

    def show(self, value: Any) -> str:
        return self.own.show(value)

    def save(self, model: Any, directory: Path) -> None:
        self.own.save(model, directory)


def soft_loss(own: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback–Leibler divergence of [N, V] from the teacher's, at a temperature, times its square."""
    student = nn.functional.log_softmax(own.float() / temperature, -1)
    teacher = nn.functional.log_softmax(theirs.float() / temperature, -1)
    return nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
