"""Quantization-aware training: an objective whose model computes with the weights that export will store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgemm.bundle.manifest import Precision
from edgemm.errors import UsageError
from edgemm.export.precision.aware import NOTE
from edgemm.export.train.data import Sample
from edgemm.export.train.fake_quantization import Rounding, places_of
from edgemm.export.train.objectives.base import Batch, Objective
from edgemm.export.train.objectives.wrapped import Wrapped


class QuantizationAware(Wrapped):
    """An objective around another, whose model's weights are rounded to `precision` (int8 or int4) as export does it.

    What is judged and written are the rounded weights. Raises UsageError for a model that is not called by batches, and
    for one that export rounds nothing of.
    """

    def __init__(self, own: Objective, precision: Precision) -> None:
        super().__init__(own)
        if type(own).compute is not Objective.compute or own.options.lora:
            what = "adapters" if own.options.lora else f"a {own.checkpoint.model_type}"
            raise UsageError(f"{what} cannot be trained for {precision}", hint="leave --qat out, or --lora")
        self.precision = precision
        self.rounding = Rounding(places_of(lambda place: own.save(own.model, place), precision))

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        return self.own.loss_of(partial(self.rounding.call, model), part)

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        if model is self.teacher:
            return self.own.say(model, samples)
        with self.rounding.in_place(model):
            return self.own.say(model, samples)

    def save(self, model: Any, directory: Path) -> None:
        with self.rounding.in_place(model):
            self.own.save(model, directory)
        note = {"precision": self.precision, "matrices": len(self.rounding.places)}
        (directory / NOTE).write_text(json.dumps(note, indent=1) + "\n")
