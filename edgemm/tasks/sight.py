"""Seeing: every picture is looked at once, whatever is asked of it, and what it showed goes into memories."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import BundleError, InputError
from edgemm.processing.image import preprocess, to_rgb
from edgemm.processing.memory import Classes, before_newest, classes_of, concepts_of
from edgemm.processing.objects import FACTS, objects_of
from edgemm.processing.video import sample_indices
from edgemm.runtimes.base import Value, as_numpy
from edgemm.tasks.graphs import Graphs

_KEPT = 16  # pictures that pass
_CROSS, _MASK = "cross.", "cross_mask"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a text decoder attends to (its `cross.*` and `cross_mask`), and where its pictures lie, [E] of length 1."""

    cross: dict[str, Value]
    embedding: NDArray[np.float32]


def _keep(looks: OrderedDict[bytes, Look], key: bytes, look: Look, most: int) -> None:
    looks[key] = look
    looks.move_to_end(key)
    while len(looks) > most:
        looks.popitem(last=False)


class Look:
    """What one picture shows. What only some tasks need is computed when it is first asked for."""

    def __init__(self, graphs: Graphs, pixel_values: NDArray[np.float32]) -> None:
        self._graphs = graphs
        # In numpy: what a runtime keeps may be written over by the next picture.
        seen = graphs.session("vision_encoder").run({"pixel_values": pixel_values})
        self._features: NDArray[Any] | None = as_numpy(seen["image_features"])
        self.cell_logits = as_numpy(seen["cell_logits"])[0]

    @cached_property
    def classes(self) -> Classes:
        """What its cells say of every class of the vision tower."""
        return classes_of(self.cell_logits)

    @cached_property
    def grid(self) -> Arrays:
        """`visual` and `finds` [cells, D], `logits` [cells, labels + 1] and `pred_boxes` [cells, 4]."""
        assert self._features is not None
        made = self._graphs.session("grid_encoder").run({"image_features": self._features})
        self._features = None
        return {name: as_numpy(value)[0] for name, value in made.items()}


class Sight:
    """The eyes of one model of a bundle, shared by its tasks. One call at a time.

    What the last `_KEPT` pictures showed is kept, and apart from them, so that pictures that pass between two looks at
    a window don't push it out, that of as many pictures of clips as the last clip has.
    """

    def __init__(self, graphs: Graphs) -> None:
        processing = graphs.entry.processing
        if processing.image is None or processing.memory is None:
            raise BundleError(f"{graphs.entry.name} lacks its image processing or its memory", hint="export it again")
        if "find_facts" not in graphs.inputs_of("memory"):
            raise BundleError(f"{graphs.entry.name} is of a version before this one", hint="export it again")
        self._graphs = graphs
        self._image, self.spec = processing.image, processing.memory
        self._looks: OrderedDict[bytes, Look] = OrderedDict()
        self._clips: OrderedDict[bytes, Look] = OrderedDict()
        self._last: tuple[Any, Memory] | None = None

    @classmethod
    def of(cls, graphs: Graphs) -> Sight:
        """The one of these graphs."""
        found = graphs.shared.setdefault("sight", None) or cls(graphs)
        graphs.shared["sight"] = found
        assert isinstance(found, cls)
        return found

    def look(self, image: Any) -> Look:
        """What a picture shows, from memory where it was seen lately."""
        return self._look(image)[1]

    def _look(self, image: Any) -> tuple[bytes, Look]:
        rgb = to_rgb(image)
        key = hashlib.blake2b(rgb.tobytes(), digest_size=16, salt=str(rgb.shape).encode()[:16]).digest()
        look = self._clips.get(key) or self._looks.get(key)
        look = look or Look(self._graphs, preprocess(rgb, self._image).pixel_values)
        _keep(self._looks, key, look, _KEPT)
        return key, look

    def remember(self, images: Sequence[Any], times_s: Sequence[float] | None = None) -> Memory:
        """A memory of pictures in order, with their times in seconds on any clock; of none, an empty one.

        Of more than `spec.frames` some are taken, evenly. Raises InputError for another number of times.
        """
        times = self._times(images, times_s)
        picks = sample_indices(len(images), self.spec.frames) if len(images) else []
        looks = [self._look(images[i]) for i in picks]
        for key, look in looks if len(images) > 1 else ():
            _keep(self._clips, key, look, len(images))
        before = before_newest([times[i] for i in picks]) if picks else np.zeros(1, np.float32)
        about = (tuple(key for key, _ in looks), tuple(before.tolist()))
        if self._last is None or self._last[0] != about:
            feeds = self._shown([look for _, look in looks]) if looks else self._nothing()
            self._last = (about, self._made({**feeds, "times_s": before}))
        return self._last[1]

    def _times(self, images: Sequence[Any], times_s: Sequence[float] | None) -> Sequence[float]:
        if times_s is None:
            return [i * self.spec.frame_period_s for i in range(len(images))]
        if len(times_s) != len(images):
            raise InputError(f"{len(images)} pictures with {len(times_s)} times: expected one time a picture")
        return times_s

    def _made(self, feeds: Arrays) -> Memory:
        session = self._graphs.session("memory")
        keep = [n for n in session.outputs if n.startswith(_CROSS)]
        made = session.run(feeds, keep=keep)
        cross = {n: v for n, v in made.items() if n.startswith(_CROSS)}
        return Memory({**cross, _MASK: as_numpy(made[_MASK])}, as_numpy(made["image_embeds"])[0].astype(np.float32))

    def _shown(self, looks: Sequence[Look]) -> Arrays:
        classes, scores, cells = concepts_of([look.classes for look in looks], self.spec.concepts)
        return {
            "visual": np.stack([look.grid["visual"] for look in looks]),
            **self._finds(looks),
            "frame_mask": np.ones(len(looks), np.int64),
            "concept_classes": classes,
            "concept_scores": scores,
            "concept_cells": cells,
        }

    def _finds(self, looks: Sequence[Look]) -> Arrays:
        count = self.spec.finds if len(looks) == 1 else self.spec.finds_in_clips
        grids = [look.grid for look in looks]
        objects = objects_of([grid["logits"] for grid in grids], [grid["pred_boxes"] for grid in grids], count)
        return {
            "finds": np.stack([grid["finds"][own] for grid, own in zip(grids, objects.queries, strict=True)]),
            "find_classes": objects.labels,
            "find_facts": objects.facts,
            "find_mask": objects.there,
        }

    def _nothing(self) -> Arrays:
        """One frame that is not shown."""
        cells, width = self._graphs.dims_of("memory", "visual")[1:]
        count = self.spec.concepts
        return {
            "visual": np.zeros((1, cells, width), np.float32),
            "finds": np.zeros((1, 1, width), np.float32),
            "find_classes": np.zeros((1, 1), np.int64),
            "find_facts": np.zeros((1, 1, FACTS), np.float32),
            "find_mask": np.zeros((1, 1), np.int64),
            "frame_mask": np.zeros(1, np.int64),
            "concept_classes": np.zeros(count, np.int64),
            "concept_scores": np.zeros((count, 2), np.float32),
            "concept_cells": np.zeros(count, np.int64),
        }
