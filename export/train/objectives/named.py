"""Objectives whose answers are names: the data set's become the head's."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.options import TrainOptions


class Named(Objective):
    """A model with a head of names, in the first of `fields`; a new head where the training rows have other ones."""

    @staticmethod
    @abstractmethod
    def names_of(value: Any) -> list[Any]:
        """The names that one row's field has."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        made = super().load(checkpoint, splits, options)
        names = _names_in(splits, cls.fields[0], cls.names_of)
        if not set(names) <= set(map(str, made.model.config.label2id)):
            made.model = _with_labels(made.model, checkpoint, names)
        return made

    @cached_property
    def ids(self) -> dict[str, int]:
        """Name → its number in the head."""
        return {str(name): int(i) for name, i in self.model.config.label2id.items()}

    def id_of(self, name: Any, sample: Sample) -> int:
        """The number of a row's name. Raises InputError for one that the head does not have."""
        if str(name) not in self.ids:
            raise InputError(f"{sample.where}: no training row has the name {name!r}", hint="move such a row there")
        return self.ids[str(name)]


def _names_in(splits: Splits, field: str, names_of: Any) -> list[str]:
    """The names that the training rows have in a field, sorted."""
    if field not in splits.train.fields:
        raise InputError(f"{splits.train.name} has no {field}", hint=f"it has {', '.join(splits.train.fields)}")
    values = splits.train.column(field)
    return sorted({str(name) for value in values if value is not None for name in names_of(value)})


def _with_labels(model: Any, checkpoint: Checkpoint, names: list[str]) -> Any:
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
