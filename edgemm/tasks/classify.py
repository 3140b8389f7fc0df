"""classify: a picture → its likeliest classes."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import BundleError
from edgemm.processing.image import preprocess, to_rgb
from edgemm.results import Label, Labels
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs


class Classifier:
    """A single-graph tagger: `pixel_values` → `logits`."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        spec = graphs.entry.processing.image
        if spec is None or graphs.entry.labels is None:
            raise BundleError(f"{graphs.entry.name} lacks its image processing or its labels")
        self._spec = spec
        self.names: tuple[str, ...] = tuple(json.loads(graphs.bundle.file(graphs.entry.labels).read_text()))

    def __call__(self, image: Any, *, top: int = 5) -> Labels:
        """The `top` classes of one picture, best first."""
        start = time.perf_counter()
        scores = self.probabilities(image)
        best = np.argsort(-scores, kind="stable")[:top]
        labels = tuple(Label(self.names[i], round(float(scores[i]), 6)) for i in best)
        return Labels(labels, (time.perf_counter() - start) * 1e3)

    def probabilities(self, image: Any) -> NDArray[np.float32]:
        """Softmax over the classes, [classes]."""
        values = preprocess(to_rgb(image), self._spec).pixel_values
        outputs = self._graphs.session("model").run({"pixel_values": values})
        logits = as_numpy(outputs["logits"])[0].astype(np.float32)
        weights = np.exp(logits - logits.max())
        result: NDArray[np.float32] = weights / weights.sum()
        return result

    def warm_up(self) -> None:
        """Load the graph and run it once."""
        self(np.zeros((64, 64, 3), np.uint8))
