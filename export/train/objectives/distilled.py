"""Learning from a teacher: its distribution at a temperature (Hinton et al., arXiv 1503.02531), and its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch, Objective
from edgemm.export.train.objectives.features import Features
from edgemm.export.train.objectives.wrapped import Wrapped


class Distilled(Wrapped):
    """An objective whose model also learns what `teacher` makes of the same inputs.

    `hard` is the share of the labels' own loss; the distance of `features` is added with their weight. The two may
    differ in depth and width, not in what they say.
    """

    def __init__(
        self,
        own: Objective,
        teacher: Any,
        *,
        temperature: float = 2.0,
        hard: float = 0.5,
        features: Features | None = None,
        feature_weight: float = 1.0,
    ) -> None:
        if not own.logits:
            kind = own.checkpoint.model_type
            raise UsageError(f"a {kind} gives no logits to learn from", hint="use edgemm finetune")
        super().__init__(own)
        self.temperature, self.hard = temperature, hard
        self.teacher = teacher.eval().requires_grad_(False)
        self.helpers, self.feature_weight = features, feature_weight

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        features = self.helpers
        if not isinstance(features, Features):
            return self._loss_of_logits(model, part)
        with features.watching() as seen:
            loss = self._loss_of_logits(model, part)
        return loss + self.feature_weight * features(seen, part)

    def _loss_of_logits(self, model: Any, part: Batch) -> torch.Tensor:
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


class Echo(Wrapped):
    """An objective whose rows have a teacher's words (Kim and Rush, arXiv 1606.07947): of any family and tokenizer.

    `theirs` is the teacher's own objective; it speaks for the teacher where the two are compared.
    """

    def __init__(self, own: Objective, theirs: Objective) -> None:
        super().__init__(own)
        self.theirs, self.teacher = theirs, theirs.model

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        return (self.theirs if model is self.teacher else self.own).say(model, samples)


def soft_loss(own: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback–Leibler divergence of [N, V] from the teacher's, at a temperature, times its square."""
    student = nn.functional.log_softmax(own.float() / temperature, -1)
    teacher = nn.functional.log_softmax(theirs.float() / temperature, -1)
    return nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
