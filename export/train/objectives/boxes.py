"""Detection by set prediction: Hungarian matching and the losses of DETR (Carion et al., arXiv 2005.12872), as the
checkpoint's own class has them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import Example
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import Batch, Objective, to, together
from edgemm.export.train.objectives.labels import names_in, with_labels
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.boxes import Box, mean_average_precision

_LEAST_PX = 1.0
_MOST = 100  # objects of a picture that count


class Boxes(Objective):
    """DETR, RT-DETR, D-FINE, YOLOS: `objects` {bbox xywh in pixels, category}; a new head for other categories."""

    fields = ("objects",)
    metric = "map50"

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        made = super().load(checkpoint, splits, options)
        names = names_in(splits, "objects", lambda objects: objects["category"])
        if not set(names) <= set(map(str, made.model.config.label2id)):
            made.model = with_labels(made.model, checkpoint, names)
        return made

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {str(name): int(i) for name, i in self.model.config.label2id.items()}

    def _seen(self, sample: Sample, *, training: bool) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The picture, and the corners of its objects [N, 4] in pixels."""
        image, boxes = sample.picture(), np.array(sample.get("objects")["bbox"], np.float32).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        return self.augment.boxed(image, corners) if training and self.augment else (image, corners)

    def _labels(
        self, sample: Sample, image: NDArray[np.uint8], corners: NDArray[np.float32]
    ) -> dict[str, torch.Tensor]:
        """Classes, and boxes as centres and sizes in shares of the picture."""
        height, width = image.shape[:2]
        ids = np.array([self._id(name, sample) for name in sample.get("objects")["category"]], np.int64)
        sizes = corners[:, 2:] - corners[:, :2]
        kept = (sizes > _LEAST_PX).all(1)
        centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, sizes], 1)[kept]
        return {
            "class_labels": torch.from_numpy(ids[kept]),
            "boxes": torch.from_numpy((centred / [width, height, width, height]).astype(np.float32)),
        }

    def _id(self, name: Any, sample: Sample) -> int:
        if str(name) not in self._ids:
            raise InputError(f"{sample.where}: no training row has an object {name!r}", hint="move such a row there")
        return self._ids[str(name)]

    def _inputs(self, image: NDArray[np.uint8]) -> Batch:
        assert self.plan.feeds is not None
        made = self.plan.feeds(Example(image=image))["model"]
        return {k: torch.from_numpy(np.asarray(v)) for k, v in made.items() if k in ("pixel_values", "pixel_mask")}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        parts, labels = [], []
        for sample in samples:
            image, corners = self._seen(sample, training=training)
            parts.append(self._inputs(image))
            labels.append(self._labels(sample, image, corners))
        joined = together(parts)
        shares = [labels] if len(joined) == 1 else [[one] for one in labels]
        return {"parts": [{**part, "labels": own} for part, own in zip(joined, shares, strict=True)]}

    def compute(self, model: Any, batch: Batch) -> torch.Tensor:
        sizes = [len(part["labels"]) for part in batch["parts"]]
        losses = [model(**part).loss * n for part, n in zip(batch["parts"], sizes, strict=True)]
        return torch.stack(losses).sum() / sum(sizes)

    def say(self, model: Any, samples: Sequence[Sample]) -> list[list[Box]]:
        said = []
        for sample in samples:
            image = sample.picture()
            out = model(**to(model.device, self._inputs(image)))
            said.append(self._found(out.logits[0].cpu(), out.pred_boxes[0].cpu().numpy(), image.shape))
        return said

    def _found(self, logits: torch.Tensor, boxes: NDArray[np.float32], shape: tuple[int, ...]) -> list[Box]:
        """Every query's likeliest class, the best first."""
        softmax = self.plan.processing.functions.get("detect") == "softmax"
        scores, classes = (logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()).max(-1)
        names = {i: name for name, i in self._ids.items()}
        height, width = shape[:2]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        corners *= [width, height, width, height]
        order = scores.argsort(descending=True)[:_MOST].tolist()
        return [Box(names[int(classes[i])], tuple(corners[i].tolist()), float(scores[i])) for i in order]

    def expected(self, sample: Sample) -> list[Box]:
        objects = sample.get("objects")
        pairs = zip(objects["category"], objects["bbox"], strict=True)
        return [Box(str(name), (x, y, x + w, y + h)) for name, (x, y, w, h) in pairs]

    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        return dict(mean_average_precision(expected, said))

    def show(self, value: Any) -> str:
        best = sorted(value, key=lambda b: -b.score)[:5]
        return ", ".join(f"{b.label} {b.score:.2f}" for b in best)
