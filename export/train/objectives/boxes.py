"""Detection by set prediction: Hungarian matching and the losses of DETR (Carion et al., arXiv 2005.12872), as the
checkpoint's own class has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.objectives.base import Batch, Objective, own_model, own_processor, to
from edgemm.export.train.options import TrainOptions

_ANY_SCORE = 0.001


class Boxes(Objective):
    """DETR, RT-DETR, D-FINE, YOLOS: `objects` {bbox xywh in pixels, category}; a new head for other categories."""

    fields = ("image", "objects")
    metric = "map50"

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        names = _categories(splits)
        known = checkpoint.config.get("id2label") or {}
        own = [str(known[k]) for k in sorted(known, key=int)]
        if set(names) <= set(own):
            return cls(own_model(checkpoint, options), own_processor(checkpoint), options)
        ids = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        return cls(own_model(checkpoint, options, **ids), own_processor(checkpoint), options)

    def _picture(self, sample: Sample, *, training: bool) -> tuple[Any, dict[str, Any]]:
        """A picture and its objects as COCO writes them."""
        image, objects = sample.picture(), sample.get("objects")
        boxes = np.array(objects["bbox"], np.float32).reshape(-1, 4)
        if training and self.augment:
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            image, corners = self.augment.boxed(image, corners)
            boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        ids = [self._id(name, sample) for name in objects["category"]]
        found = [
            {"bbox": box.tolist(), "category_id": i, "area": float(box[2] * box[3]), "iscrowd": 0}
            for box, i in zip(boxes, ids, strict=True)
            if box[2] > 1 and box[3] > 1
        ]
        return image, {"image_id": 0, "annotations": found}

    def _id(self, name: Any, sample: Sample) -> int:
        ids = self.model.config.label2id
        if str(name) not in ids:
            raise InputError(f"{sample.where}: no training row has an object {name!r}", hint="move such a row there")
        return int(ids[str(name)])

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        pairs = [self._picture(s, training=training) for s in samples]
        made = self.processor([p for p, _ in pairs], annotations=[a for _, a in pairs], return_tensors="pt")
        labels = [{k: v for k, v in dict(label).items() if hasattr(v, "shape")} for label in made["labels"]]
        return {**{k: v for k, v in made.items() if k in ("pixel_values", "pixel_mask")}, "labels": labels}

    def say(self, model: Any, samples: Sequence[Sample]) -> list[Any]:
        from edgemm.tasks.detection import Box

        images = [s.picture() for s in samples]
        made = self.processor(images, return_tensors="pt")
        feeds = to(model.device, {k: v for k, v in made.items() if k in ("pixel_values", "pixel_mask")})
        sizes = torch.tensor([i.shape[:2] for i in images])
        found = self.processor.post_process_object_detection(model(**feeds), _ANY_SCORE, sizes)
        names = self.model.config.id2label
        return [
            [
                Box(str(names[int(i)]), tuple(box.tolist()), float(score))
                for i, box, score in zip(one["labels"], one["boxes"], one["scores"], strict=True)
            ]
            for one in found
        ]

    def expected(self, sample: Sample) -> list[Any]:
        from edgemm.tasks.detection import Box

        objects = sample.get("objects")
        return [
            Box(str(name), (x, y, x + w, y + h))
            for name, (x, y, w, h) in zip(objects["category"], objects["bbox"], strict=True)
        ]

    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        from edgemm.tasks.detection import mean_average_precision

        return dict(mean_average_precision(expected, said))

    def show(self, value: Any) -> str:
        best = sorted(value, key=lambda b: -b.score)[:5]
        return ", ".join(f"{b.label} {b.score:.2f}" for b in best)


def _categories(splits: Splits) -> list[str]:
    if "objects" not in splits.train.fields:
        raise InputError(f"{splits.train.name} has no objects", hint=f"it has {', '.join(splits.train.fields)}")
    rows = splits.train.column("objects")
    return sorted({str(name) for row in rows if row for name in row["category"]})
