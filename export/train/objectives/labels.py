"""Classification of pictures, sounds and videos: the data set's labels become the head's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import Batch, Objective, own_model, own_processor, to
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.metrics import top1


class Labels(Objective):
    """A classifier of whatever its processor takes; a new head where the data set has other labels."""

    fields = ("label",)
    metric = "top1"

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        names = _names(splits)
        known = checkpoint.config.get("id2label") or {}
        own = [str(known[k]) for k in sorted(known, key=int)]
        if set(names) <= set(own):
            return cls(own_model(checkpoint, options), own_processor(checkpoint), options)
        ids = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        return cls(own_model(checkpoint, options, **ids), own_processor(checkpoint), options)

    def _feeds(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        name = self.model.main_input_name
        augment = self.augment if training else None
        if "sampling_rate" in vars(self.processor):
            rate_hz = self.processor.sampling_rate
            sounds = [s.sound(rate_hz) for s in samples]
            sounds = [augment.sound(s) for s in sounds] if augment else sounds
            return dict(self.processor(sounds, sampling_rate=rate_hz, return_tensors="pt", padding=True))
        if self.model.config.model_type == "videomae":
            videos = [list(s.frames(self.model.config.num_frames)[0]) for s in samples]
            return dict(self.processor(videos, return_tensors="pt"))
        pictures = [s.picture() for s in samples]
        pictures = [augment.picture(p) for p in pictures] if augment else pictures
        return {name: self.processor(pictures, return_tensors="pt")[name]}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        ids = self.model.config.label2id
        labels = torch.tensor([int(ids[self.expected(s)]) for s in samples])
        return {**self._feeds(samples, training=training), "labels": labels}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        logits = model(**to(model.device, self._feeds(samples, training=False))).logits
        return [str(self.model.config.id2label[i]) for i in logits.argmax(-1).tolist()]

    def expected(self, sample: Sample) -> str:
        name = str(sample.get("label"))
        if name not in self.model.config.label2id:
            raise InputError(f"{sample.where}: no training row has the label {name!r}", hint="move such a row there")
        return name

    def judge(self, expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        return {"top1": top1(expected, said)}


def _names(splits: Splits) -> list[str]:
    if "label" not in splits.train.fields:
        raise InputError(f"{splits.train.name} has no label", hint=f"it has {', '.join(splits.train.fields)}")
    return sorted({str(name) for name in splits.train.column("label") if name is not None})
