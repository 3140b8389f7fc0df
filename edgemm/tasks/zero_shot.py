"""classify with labels that are given in words: a picture or a sound against a sentence for each label."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.results import Label, Labels
from edgemm.tasks.dual import DualEncoder, Vectors
from edgemm.tasks.graphs import Graphs

_MOST_REMEMBERED = 4096


class ZeroShot:
    """A dual encoder of a bundle as a classifier. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        self._encoder = DualEncoder(graphs)
        self._sentences: dict[str, Vectors] = {}

    def __call__(
        self,
        image: Any = None,
        *,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        labels: Sequence[str] = (),
        template: str | None = None,
        top: int = 5,
    ) -> Labels:
        """The `top` of `labels` for a picture or a sound, best first.

        `template` makes a label a sentence; its `{}` is the label. Raises InputError where there are no labels.
        """
        start = time.perf_counter()
        scores = self.probabilities(image, audio=audio, sample_rate_hz=sample_rate_hz, labels=labels, template=template)
        best = np.argsort(-scores, kind="stable")[:top]
        found = tuple(Label(labels[i], round(float(scores[i]), 6)) for i in best)
        return Labels(found, (time.perf_counter() - start) * 1e3)

    def probabilities(
        self,
        image: Any = None,
        *,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        labels: Sequence[str],
        template: str | None = None,
    ) -> NDArray[np.float32]:
        """The score of every label, [labels]: a softmax over them, or a sigmoid where pairs were trained one by one."""
        if not labels:
            raise InputError(
                "there are no labels to choose from", hint='give them in words: labels=["a cup", "a door"]'
            )
        if (image is None) == (audio is None):
            raise InputError("expected one picture or one sound")
        pattern = self._encoder.similarity.template if template is None else template
        if "{}" not in pattern:
            raise InputError(f"the template {pattern!r} has no {{}} for the label")
        seen = self._encoder.image(image) if audio is None else self._encoder.audio(audio, sample_rate_hz)
        cosines = self._texts([pattern.replace("{}", label) for label in labels]) @ seen
        logits = cosines * np.float32(self._encoder.similarity.scale) + np.float32(self._encoder.similarity.bias)
        if self._encoder.similarity.function == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum(), np.float32)

    def warm_up(self) -> None:
        """Load every graph and run it once."""
        self._encoder.warm_up()

    def _texts(self, sentences: Sequence[str]) -> Vectors:
        new = [s for s in dict.fromkeys(sentences) if s not in self._sentences]
        if len(self._sentences) + len(new) > _MOST_REMEMBERED:
            self._sentences, new = {}, list(dict.fromkeys(sentences))
        if new:
            self._sentences |= zip(new, self._encoder.texts(new), strict=True)
        return np.stack([self._sentences[s] for s in sentences])
