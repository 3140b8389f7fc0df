"""What every objective has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.loading import from_pretrained
from edgemm.export.train.augment import Augment
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.freezing import set_dropout
from edgemm.export.train.options import TrainOptions

Batch = dict[str, Any]
IGNORED = -100  # what torch's cross entropy leaves out


class Objective(ABC):
    """A model, its processor, and what a row means to them.

    `metric` is what a run is steered by, `greater` whether more of it is better. `next_token` says that a position's
    logits are of the label one further on, as in language models without an encoder.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[str]
    greater: ClassVar[bool] = True
    next_token: ClassVar[bool] = False

    def __init__(self, model: Any, processor: Any, options: TrainOptions) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.augment = Augment(options.seed) if options.augment else None

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        """The checkpoint's own class and processor. Raises CheckpointError where it cannot be loaded."""
        return cls(own_model(checkpoint, options), own_processor(checkpoint), options)

    @abstractmethod
    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        """What the model is called with, labels included, so that its output has a loss."""

    @abstractmethod
    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        """What the model makes of rows: what `expected` is compared with."""

    @abstractmethod
    def expected(self, sample: Sample) -> Any:
        """What should be said."""

    @abstractmethod
    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        """The metrics by name, `metric` among them."""

    def show(self, value: Any) -> str:
        """What was said or expected, for people."""
        return str(value)

    def compute(self, model: Any, batch: Batch) -> tuple[torch.Tensor, Any]:
        """The loss of a batch, and the model's outputs.

        The loss is the model's own, or with label smoothing (Szegedy et al., arXiv 1512.00567) made from its logits.
        """
        outputs = model(**batch)
        labels = batch.get("labels")
        if not self.options.label_smoothing or not isinstance(labels, torch.Tensor):
            return outputs["loss"], outputs
        logits = outputs["logits"]
        if self.next_token:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.options.label_smoothing,
        )
        return loss, outputs

    def save(self, model: Any, directory: Path) -> None:
        """Write the model and its processor as transformers does."""
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def own_class(checkpoint: Checkpoint) -> Any:
    """The class that the checkpoint names. Raises CheckpointError where transformers has none."""
    import transformers

    for name in checkpoint.config.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if found is not None:
            return found
    raise CheckpointError(
        f"{checkpoint.path} names no class of transformers, but {checkpoint.config.get('architectures')}",
        hint="train it with its own code, then run: edgemm export",
    )


def own_model(checkpoint: Checkpoint, options: TrainOptions, cls: Any = None, **changes: Any) -> Any:
    """The model in fp32, its dropout as `options` say; `changes` are of its configuration."""
    cls = cls or own_class(checkpoint)
    if options.dropout is not None or changes:
        config = cls.config_class.from_pretrained(checkpoint.path)
        for name, value in changes.items():
            setattr(config, name, value)
        if options.dropout is not None:
            set_dropout(config, options.dropout)
        return cls.from_pretrained(
            checkpoint.path, config=config, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
        )
    return from_pretrained(cls, checkpoint)


def own_processor(checkpoint: Checkpoint) -> Any:
    """The processor, tokenizer, feature extractor or image processor that lies with the checkpoint."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"{checkpoint.path} has no processor that can be loaded: {reason}",
            hint="copy its preprocessor_config.json and tokenizer files beside the weights",
        ) from error


def to(device: Any, batch: Mapping[str, Any]) -> Batch:
    """The tensors of a batch on a device."""
    return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
