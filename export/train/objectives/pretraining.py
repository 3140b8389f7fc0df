"""What Frambicus learns before any task, from pictures, clips and their texts: hidden cells, hidden words, what belongs
together, and captions; one of them, or several jointly, each with a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgemm.errors import InputError, UsageError
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import IGNORED, Batch
from edgemm.export.train.objectives.frambicus import Frambicus

OF_PICTURES = "masked_grid"
OF_TEXTS = ("masked_language", "contrastive", "caption")
OBJECTIVES = (OF_PICTURES, *OF_TEXTS)
_HIDDEN_WORDS = 0.3


class Pretraining(Frambicus):
    """`weights` by objective; those that are not named are left out. `hidden` is the share of cells that are masked.

    Masked image modelling is the masked grid of a picture, masked video modelling that of a clip. The metrics are the
    objectives' own losses.
    """

    metric = "loss"

    def __init__(self, own: Frambicus, weights: Mapping[str, float], *, hidden: float = 0.5) -> None:
        strange = sorted(set(weights) - set(OBJECTIVES))
        if strange or not weights:
            raise UsageError(f"no objective {', '.join(strange) or 'was named'}", hint=f"of {', '.join(OBJECTIVES)}")
        if not 0 < hidden < 1:
            raise UsageError("the share of hidden cells is between 0 and 1")
        from edgemm.export.frambicus import FrambicusForPreTraining

        model = FrambicusForPreTraining.from_pretrained(own.checkpoint.path)
        super().__init__(own.checkpoint, model, own.processor, own.options)
        self.weights, self.hidden, self._known = dict(weights), hidden, own._known

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        told = [s for s in samples if s.has("text")] if set(self.weights) & set(OF_TEXTS) else []
        untold = [s for s in samples if s not in told] if OF_PICTURES in self.weights else []
        parts = [self._joint(rows, training=training) for rows in (told, untold) if rows]
        if not parts:
            raise InputError(f"{samples[0].where} teaches nothing", hint="these objectives need rows with a text")
        return {"parts": parts}

    def _joint(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        """The inputs of every objective that these rows can teach."""
        from edgemm.export.frambicus.pretraining import random_cells

        inputs: Batch = self._grids.of(samples, training=training)
        # What is judged is hidden alike every time.
        generator = None if training else torch.Generator().manual_seed(self.options.seed)
        if OF_PICTURES in self.weights:
            rows, frames, _, height, width = inputs["grids"][-1].shape
            inputs["hidden"] = random_cells((rows, frames, height, width), self.hidden, generator)
        if all(s.has("text") for s in samples):
            inputs |= self._texts_of([s.texts()[0] for s in samples], generator)
        return {"rows": len(samples), "inputs": {**inputs, "weights": self.weights}}

    def _texts_of(self, texts: Sequence[str], generator: torch.Generator | None) -> Batch:
        made: Batch = {}
        captions = self.processor.write("caption", [""] * len(texts), texts)
        if "caption" in self.weights:
            made |= captions
        if "contrastive" in self.weights:
            pairs = self.processor.write("recommend", texts)
            made |= {"text_ids": pairs["input_ids"], "text_mask": pairs["attention_mask"]}
        if "masked_language" in self.weights:
            words = captions["labels"] != IGNORED
            chosen = words & (torch.rand(words.shape, generator=generator) < _HIDDEN_WORDS)
            chosen[:, 2] |= ~chosen.any(1)  # behind the start and the task: every text has one hidden word
            mask = self.processor.tokenizer.task_id("mask")
            made["masked_ids"] = captions["input_ids"].masked_fill(chosen, mask)
            made["masked_mask"] = captions["attention_mask"]
            made["masked_labels"] = captions["input_ids"].masked_fill(~chosen, IGNORED)
        return made

    def weight_of(self, part: Batch) -> int:
        return int(part["rows"])

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        device = part["inputs"]["frame_mask"].device
        loss: torch.Tensor = model(**part["inputs"], tokens=self._tokens(device)).loss
        return loss

    def say(self, model: Any, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """The losses of the batch that a row is judged in."""
        found: dict[str, float] = {}
        for part in self.batch(samples, training=False)["parts"]:
            found |= {name: float(loss) for name, loss in model(**part["inputs"]).loss_dict.items()}
        return [found] * len(samples)

    def expected(self, sample: Sample) -> dict[str, float]:
        return {}

    def judge(self, expected: Sequence[Any], said: Sequence[dict[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for losses in said for name in losses)
        values = {name: [losses[name] for losses in said if name in losses] for name in names}
        return {name: sum(own) / len(own) for name, own in values.items()}

    def show(self, value: Any) -> str:
        return ", ".join(f"{name} {loss:.3f}" for name, loss in value.items())
