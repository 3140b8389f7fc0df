"""Classification of pictures, sounds and videos: the data set's labels become the head's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, to, together
from edgemm.export.train.objectives.named import Named
from edgemm.tasks.class_report import ClassReport, class_report
from edgemm.tasks.metrics import top1


class Labels(Named):
    """A classifier of whatever its family takes; a new head where the data set has other labels."""

    fields = ("label",)
    metric = "top1"

    @staticmethod
    def names_of(value: Any) -> list[Any]:
        return [value]

    def picture(self, sample: Sample) -> NDArray[np.uint8] | None:
        """Of a video its middle picture."""
        if self.plan.takes == "image" and sample.has("video"):
            middle: NDArray[np.uint8] = sample.frames(3)[0][1]
            return middle
        return super().picture(sample)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        parts = []
        for sample in samples:
            label = torch.tensor([self.ids[self.expected(sample)]])
            if self.model.config.problem_type == "multi_label_classification":
                label = torch.nn.functional.one_hot(label, len(self.ids)).float()
            parts.append({**self.feeds(sample, training=training), "labels": label})
        return {"parts": together(parts)}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        names = {i: name for name, i in self.ids.items()}
        logits = [model(**to(model.device, self.feeds(s, training=False))).logits[0] for s in samples]
        return [names[int(one.argmax())] for one in logits]

    def expected(self, sample: Sample) -> str:
        name = str(sample.get("label"))
        self.id_of(name, sample)
        return name

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        return {"label": said}

    def report(self, expected: Sequence[str], said: Sequence[str]) -> ClassReport | None:
        return class_report(expected, said)

    def judge(self, expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        return {"top1": top1(expected, said)}
