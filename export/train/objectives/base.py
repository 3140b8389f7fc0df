"""What every objective has."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgemm.errors import CheckpointError, UsageError
from edgemm.export import families
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.loading import quieten
from edgemm.export.model_plan import Example, ModelPlan, Original
from edgemm.export.precision.aware import NOTE
from edgemm.export.precision.calibration import RATE_HZ
from edgemm.export.train.augment import Augment
from edgemm.export.train.data import Sample, Samples, Splits
from edgemm.export.train.freezing import set_dropout
from edgemm.export.train.options import TrainOptions
from edgemm.processing.text import Tokenizer
from edgemm.tasks.class_report import ClassReport

Batch = dict[str, Any]
Feeds = dict[str, torch.Tensor]
IGNORED = -100  # what torch's cross entropy leaves out
_NOT_COPIED = ("*.safetensors", "*.bin", "*.index.json", "config.json", "report", "*.md", "*.onnx", NOTE)


class Objective(ABC):
    """A model, what its family says of it, and what a row means to it.

    Rows become inputs as they do on a device: by the host functions that the family names (`edgemm.processing`), which
    equal transformers' processors. `metric` is what a run is steered by. With `logits` a student can learn from a
    teacher's. `helpers` are trained with the model and not written with it.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    logits: ClassVar[bool] = True
    metric: str
    teacher: Any = None
    helpers: nn.Module | None = None

    def __init__(self, checkpoint: Checkpoint, plan: ModelPlan, options: TrainOptions) -> None:
        if plan.original is None:
            raise CheckpointError(f"{checkpoint.path} is a {plan.model_type}, which is exported but not trained")
        self.checkpoint, self.plan, self.options = checkpoint, plan, options
        self.original: Original = plan.original
        self.model: Any = plan.original.model
        self.augment = Augment(options.seed) if options.augment else None
        if options.dropout is not None:
            set_dropout(self.model, options.dropout)

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        """The objective of a checkpoint that learns `splits`. Raises CheckpointError where it cannot be loaded."""
        return cls.as_it_is(checkpoint, options)

    @classmethod
    def as_it_is(cls, checkpoint: Checkpoint, options: TrainOptions) -> Objective:
        """The objective of a checkpoint that has learned: a teacher. Raises as `load` does."""
        quieten()
        return cls(checkpoint, families.find(checkpoint.model_type).plan(checkpoint), options)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's, for families that read or write texts."""
        text = self.plan.processing.text
        assert text is not None
        return Tokenizer(self.checkpoint.path / "tokenizer.json", text)

    def prepare(self, place: Path) -> None:
        """Given a directory that stays until the run is finished."""
        return

    def units(self, rows: Samples) -> Sequence[Any]:
        """What a batch counts: rows, or groups of rows that are cheaper together."""
        return rows

    @abstractmethod
    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        """What `compute` takes for rows, as tensors and lists and dicts of them."""

    def compute(self, model: Any, batch: Batch) -> torch.Tensor:
        """The loss of a batch: the weighted mean over its parts, which the model is called with one by one."""
        weights = [self.weight_of(part) for part in batch["parts"]]
        losses = [self.loss_of(model, part) * n for part, n in zip(batch["parts"], weights, strict=True)]
        return torch.stack(losses).sum() / sum(weights)

    def weight_of(self, part: Batch) -> int:
        """How much a part of a batch counts: by its labels."""
        return max(1, int((part["labels"] != IGNORED).sum()))

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        """The loss of one part of a batch.

        With label smoothing (Szegedy et al., arXiv 1512.00567) it is made from the logits, else it is the model's own.
        """
        outputs = model(**part)
        if not self.options.label_smoothing:
            loss: torch.Tensor = outputs.loss
            return loss
        logits, labels = outputs.logits, part["labels"]
        if self.next_token:
            logits, labels = logits[:, -labels.shape[1] :][:, :-1], labels[:, 1:]
        return nn.functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.options.label_smoothing,
        )

    @property
    def next_token(self) -> bool:
        """Whether a position's logits are of the label one further on, as in decoders without an encoder."""
        return False

    @abstractmethod
    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        """What the model makes of rows: what `expected` is compared with."""

    @abstractmethod
    def expected(self, sample: Sample) -> Any:
        """What should be said."""

    @abstractmethod
    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        """The metrics by name, `metric` among them."""

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        """The fields of a row whose target is what was said to it. Raises UsageError where no field holds that."""
        raise UsageError(
            f"what a {self.checkpoint.model_type} says is no field of a row",
            hint="a teacher transcribes, answers, captions, classifies or detects",
        )

    def report(self, expected: Sequence[Any], said: Sequence[Any]) -> ClassReport | None:
        """How well each label was found, where there are labels."""
        return None

    def show(self, value: Any) -> str:
        """What was said or expected, for people."""
        return str(value)

    def example(self, sample: Sample, *, training: bool) -> Example:
        """A row's picture, sound and question."""
        image, audio = self.picture(sample), self.sound(sample)
        if training and self.augment:
            image = None if image is None else self.augment.picture(image)
            audio = None if audio is None else self.augment.sound(audio)
        asked = sample.values.get("question")
        return Example(image, audio, *([str(asked)] if asked is not None else []))

    def picture(self, sample: Sample) -> NDArray[np.uint8] | None:
        """The row's picture, where it has one and the model takes it."""
        return sample.picture() if self.plan.takes == "image" and not sample.has("video") else None

    def sound(self, sample: Sample) -> NDArray[np.float32] | None:
        """The row's sound, float32 at 16 kHz, where it has one and the model takes it."""
        return sample.sound(RATE_HZ) if self.plan.takes == "audio" else None

    def feeds(self, sample: Sample, *, training: bool) -> Feeds:
        """What the model is called with for one row."""
        assert self.plan.feeds is not None
        made = self.plan.feeds(self.example(sample, training=training))
        first = next(iter(made.values()))
        feeds: Feeds = self.original.renamed({k: torch.from_numpy(np.asarray(v)) for k, v in first.items()})
        return feeds

    def save(self, model: Any, directory: Path) -> None:
        """Write the model as transformers does, and beside it what lay with the checkpoint."""
        shutil.copytree(
            self.checkpoint.path, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_COPIED)
        )
        model.save_pretrained(directory)


class Lesson(nn.Module):
    """A model whose output is the loss of a batch: what transformers' Trainer calls, on one device or many."""

    def __init__(self, objective: Objective, model: Any) -> None:
        super().__init__()
        self.model, self._objective = model, objective
        self.helpers = objective.helpers

    def forward(self, **batch: Any) -> Batch:
        """`batch` is what the objective's `batch` made."""
        return {"loss": self._objective.compute(self.model, batch)}


def together(parts: Sequence[Batch], aligned: Sequence[str] = ()) -> list[Batch]:
    """One batch of parts that fit each other: `aligned` tensors [1, S] are filled up, all others must be of one size.

    Parts that do not fit stay alone: they are computed one after the other.
    """
    first = parts[0]
    fits = all(
        part.keys() == first.keys() and all(k in aligned or part[k].shape[1:] == first[k].shape[1:] for k in first)
        for part in parts
    )
    if not fits or len(parts) == 1:
        return list(parts)
    return [{k: _filled([p[k] for p in parts], k) if k in aligned else torch.cat([p[k] for p in parts]) for k in first}]


def _filled(rows: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    fill = IGNORED if name == "labels" else 0
    return nn.utils.rnn.pad_sequence([r[0] for r in rows], batch_first=True, padding_value=fill)


def to(device: Any, batch: Mapping[str, Any]) -> Batch:
    """The tensors of a batch on a device."""
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
