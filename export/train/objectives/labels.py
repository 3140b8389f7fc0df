"""Classification of pictures, sounds and videos: the data set's labels become the head's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import Batch, Objective, to, together
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.class_report import ClassReport, class_report
from edgemm.tasks.metrics import top1


class Labels(Objective):
    """A classifier of whatever its family takes; a new head where the data set has other labels."""

    fields = ("label",)
    metric = "top1"

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        made = super().load(checkpoint, splits, options)
        names = names_in(splits, "label", lambda value: [value])
        if not set(names) <= set(map(str, made.model.config.label2id)):
            made.model = with_labels(made.model, checkpoint, names)
        return made

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {str(name): int(i) for name, i in self.model.config.label2id.items()}

    def picture(self, sample: Sample) -> NDArray[np.uint8] | None:
        """Of a video its middle picture."""
        if self.plan.takes == "image" and sample.has("video"):
            middle: NDArray[np.uint8] = sample.frames(3)[0][1]
            return middle
        return super().picture(sample)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        parts = []
        for sample in samples:
            label = torch.tensor([self._ids[self.expected(sample)]])
            if self.model.config.problem_type == "multi_label_classification":
                label = torch.nn.functional.one_hot(label, len(self._ids)).float()
            parts.append({**self.feeds(sample, training=training), "labels": label})
        return {"parts": together(parts)}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        names = {i: name for name, i in self._ids.items()}
        logits = [model(**to(model.device, self.feeds(s, training=False))).logits[0] for s in samples]
        return [names[int(one.argmax())] for one in logits]

    def expected(self, sample: Sample) -> str:
        name = str(sample.get("label"))
        if name not in self._ids:
            raise InputError(f"{sample.where}: no training row has the label {name!r}", hint="move such a row there")
        return name

    def report(self, expected: Sequence[str], said: Sequence[str]) -> ClassReport | None:
        return class_report(expected, said)

    def judge(self, expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        return {"top1": top1(expected, said)}


def names_in(splits: Splits, field: str, names_of: Any) -> list[str]:
    """The names that the training rows have in a field, sorted."""
    if field not in splits.train.fields:
        raise InputError(f"{splits.train.name} has no {field}", hint=f"it has {', '.join(splits.train.fields)}")
    values = splits.train.column(field)
    return sorted({str(name) for value in values if value is not None for name in names_of(value)})


def with_labels(model: Any, checkpoint: Checkpoint, names: list[str]) -> Any:
    """The same class with a head for other labels, drawn anew; every other weight is the checkpoint's."""
    config = type(model.config).from_pretrained(checkpoint.path)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    if getattr(config, "problem_type", None) == "multi_label_classification":
        config.problem_type = None
    return (
        type(model)
        .from_pretrained(
            checkpoint.path, config=config, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
        )
        .eval()
    )
