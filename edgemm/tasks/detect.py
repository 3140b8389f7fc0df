"""detect: a picture → its objects, each with a box in the picture's own pixels.

Set prediction as in DETR (Carion et al., arXiv 2005.12872): every query is one object or none, so nothing is
suppressed afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import EdgesSpec, ImageSpec
from edgemm.errors import BundleError
from edgemm.processing.edges import bicubic_weights
from edgemm.processing.image import ImageInput, preprocess, to_rgb
from edgemm.results import DetectedObject, Detections
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs

Floats = NDArray[np.float32]
# Scores [N], classes [N] and the queries [N] that they belong to.
Scored = tuple[Floats, NDArray[np.int64], NDArray[np.int64]]


class SoftmaxDetector:
    """`logits` [Q, C], the last class being "no object": a query is its best class (DETR, YOLOS)."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        spec = graphs.entry.processing.image
        if spec is None:
            raise BundleError(f"{graphs.entry.name} lacks its image processing")
        self._spec = spec
        self._dims = {name: graphs.dims_of("model", name) for name in graphs.inputs_of("model")}
        self.names = graphs.labels("detect")

    def __call__(self, image: Any, *, score_min: float = 0.5) -> Detections:
        """The objects of one picture whose score is above `score_min`, best first."""
        start = time.perf_counter()
        picture = to_rgb(image)
        logits, boxes = self.queries(picture)
        scores, classes, rows = self.scored(logits)
        kept = np.flatnonzero(scores > score_min)
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        kept = kept[self.distinct(scores[kept], classes[kept], boxes[rows[kept]])]
        corners = corners_px(boxes[rows[kept]], (picture.shape[0], picture.shape[1]))
        objects = tuple(
            DetectedObject(self.names[c], float(s), (float(b[0]), float(b[1]), float(b[2]), float(b[3])))
            for c, s, b in zip(classes[kept], scores[kept], corners, strict=True)
        )
        return Detections(objects, (time.perf_counter() - start) * 1e3)

    def queries(self, image: Any) -> tuple[Floats, Floats]:
        """What the graph says: `logits` [Q, C] and `pred_boxes` [Q, 4] (centre, width and height; parts of 1)."""
        feeds = graph_feeds(preprocess(image, self._spec), self._spec, self._dims)
        outputs = self._graphs.session("model").run(feeds)
        logits, boxes = as_numpy(outputs["logits"])[0], as_numpy(outputs["pred_boxes"])[0]
        return logits.astype(np.float32), boxes.astype(np.float32)

    def rows(self, image: Any) -> Floats:
        """[Q, C + 4]: the probabilities and the box of every query, for comparing with the original."""
        logits, boxes = self.queries(to_rgb(image))
        return np.concatenate([self.probabilities(logits), boxes], 1)

    def probabilities(self, logits: Floats) -> Floats:
        """[Q, C], "no object" included."""
        weights: Floats = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return weights

    def scored(self, logits: Floats) -> Scored:
        """Every query with its best class."""
        found = self.probabilities(logits)[:, :-1]
        return found.max(-1), found.argmax(-1), np.arange(len(logits))

    def distinct(self, scores: Floats, classes: NDArray[np.int64], boxes: Floats) -> Sequence[int]:
        """Which of n finds, best first, are objects of their own: of a set prediction all."""
        return range(len(scores))

    def warm_up(self) -> None:
        """Load the graph and run it once."""
        self(np.zeros((64, 64, 3), np.uint8))


class SigmoidDetector(SoftmaxDetector):
    """`logits` [Q, C], each class for itself: the Q best pairs of query and class (RT-DETR, D-FINE)."""

    def probabilities(self, logits: Floats) -> Floats:
        """[Q, C], each in 0…1."""
        result: Floats = (1 / (1 + np.exp(-logits))).astype(np.float32)
        return result

    def scored(self, logits: Floats) -> Scored:
        """The best pairs. A query may be several."""
        queries, classes = logits.shape
        found = self.probabilities(logits).ravel()
        best = np.argsort(-found, kind="stable")[:queries]
        return found[best], best % classes, best // classes


def graph_feeds(made: ImageInput, spec: ImageSpec, dims: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The inputs of a detector's graph. `dims` are of each input that it has.

    `aux.rows` [rows, table] and `aux.cols` [columns, table] bring a table of positions to the picture's own patches.
    """
    feeds: dict[str, NDArray[Any]] = {"pixel_values": made.pixel_values}
    if "pixel_mask" in dims:
        feeds["pixel_mask"] = made.pixel_mask.astype(np.int64)
    if isinstance(spec, EdgesSpec):
        for name, edge_px in zip(("aux.rows", "aux.cols"), made.pixel_values.shape[2:], strict=True):
            if name in dims:
                feeds[name] = bicubic_weights(dims[name][1], edge_px // spec.multiple_px)
    return feeds


def corners_px(boxes: Floats, size_hw: tuple[int, int]) -> Floats:
    """Boxes [N, 4] as centre, width and height (parts of 1) → x0, y0, x1, y1 in pixels of a picture."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = np.concatenate([centre - half, centre + half], 1)
    result: Floats = corners * np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    return result
