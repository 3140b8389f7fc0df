"""Detection by set prediction: Hungarian matching and the losses of DETR (Carion et al., arXiv 2005.12872), as the
checkpoint's own class has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.export.model_plan import Example
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, to, together
from edgemm.export.train.objectives.named import Named
from edgemm.tasks.boxes import Box, mean_average_precision

_LEAST_PX = 1.0
_MOST = 100  # objects of a picture that count
_SURE = 0.5  # the least score of a box that is a label


class Boxes(Named):
    """DETR, RT-DETR, D-FINE, YOLOS: `objects` {bbox xywh in pixels, category}; a new head for other categories."""

    fields = ("objects",)
    metric = "map50"
    logits = False

    @staticmethod
    def names_of(value: Any) -> list[Any]:
        return list(value["category"])

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
        ids = np.array([self.id_of(name, sample) for name in sample.get("objects")["category"]], np.int64)
        sizes = corners[:, 2:] - corners[:, :2]
        kept = (sizes > _LEAST_PX).all(1)
        centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, sizes], 1)[kept]
        return {
            "class_labels": torch.from_numpy(ids[kept]),
            "boxes": torch.from_numpy((centred / [width, height, width, height]).astype(np.float32)),
        }

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

    def weight_of(self, part: Batch) -> int:
        return len(part["labels"])

    def loss_of(self, model: Any, part: Batch) -> torch.Tensor:
        loss: torch.Tensor = model(**part).loss
        return loss

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
        names = {i: name for name, i in self.ids.items()}
        height, width = shape[:2]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        corners *= [width, height, width, height]
        order = scores.argsort(descending=True)[:_MOST].tolist()
        return [Box(names[int(classes[i])], tuple(corners[i].tolist()), float(scores[i])) for i in order]

    def expected(self, sample: Sample) -> list[Box]:
        objects = sample.get("objects")
        pairs = zip(objects["category"], objects["bbox"], strict=True)
        return [Box(str(name), (x, y, x + w, y + h)) for name, (x, y, w, h) in pairs]

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        """Boxes that are more likely right than not."""
        sure = [box for box in said if box.score >= _SURE]
        corners = [box.box_px for box in sure]
        shapes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners]
        scores = [round(box.score, 4) for box in sure]
        return {"objects": {"bbox": shapes, "category": [box.label for box in sure], "score": scores}}

    def judge(self, expected: Sequence[Any], said: Sequence[Any]) -> dict[str, float]:
        return dict(mean_average_precision(expected, said))

    def show(self, value: Any) -> str:
        best = sorted(value, key=lambda b: -b.score)[:5]
        return ", ".join(f"{b.label} {b.score:.2f}" for b in best)
