"""classify: a picture, a sound or a clip → its likeliest classes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import BundleError, InputError
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.features import prepare
from edgemm.processing.image import preprocess, preprocess_many, to_rgb
from edgemm.results import Label, Labels
from edgemm.runtimes.base import Value, as_numpy
from edgemm.tasks.graphs import Graphs


class Classifier:
    """A single-graph tagger: `pixel_values`, `input_features` or `input_values` → `logits`."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        processing = graphs.entry.processing
        if processing.image is None and processing.audio is None:
            raise BundleError(f"{graphs.entry.name} lacks its image or audio processing")
        self._image, self._audio, self._video = processing.image, processing.audio, processing.video
        self._sigmoid = processing.functions.get("scores") == "sigmoid"
        self.names = graphs.labels("classify")

    def __call__(
        self,
        image: Any = None,
        *,
        frames: Sequence[Any] | None = None,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        top: int = 5,
    ) -> Labels:
        """The `top` classes of one picture, of a clip (its frames in order) or of a sound, best first.

        Raises InputError for `labels` and a `template`: the classes are the model's own.
        """
        start = time.perf_counter()
        if labels is not None or template is not None:
            raise InputError(f"{self._graphs.entry.name} has its own {len(self.names)} labels and takes no others")
        scores = self.probabilities(image, frames=frames, audio=audio, sample_rate_hz=sample_rate_hz)
        best = np.argsort(-scores, kind="stable")[:top]
        found = tuple(Label(self.names[i], round(float(scores[i]), 6)) for i in best)
        return Labels(found, (time.perf_counter() - start) * 1e3)

    def probabilities(
        self,
        image: Any = None,
        *,
        frames: Sequence[Any] | None = None,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
    ) -> NDArray[np.float32]:
        """The score of every class, [classes]: a softmax or, where several may hold at once, a sigmoid of each."""
        feeds = self._hear(audio, sample_rate_hz) if audio is not None else self._see(image, frames)
        logits = as_numpy(self._graphs.session("model").run(feeds)["logits"])[0].astype(np.float32)
        if self._sigmoid:
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        weights = np.exp(logits - logits.max())
        result: NDArray[np.float32] = weights / weights.sum()
        return result

    def _hear(self, audio: Any, sample_rate_hz: int) -> dict[str, Value]:
        if self._audio is None:
            raise InputError(f"{self._graphs.entry.name} takes {self._takes()}, not sound")
        made = prepare(to_mono_16k(audio, sample_rate_hz, self._audio.sample_rate_hz), self._audio)
        return {made.name: made.values}

    def _see(self, image: Any, frames: Sequence[Any] | None) -> dict[str, Value]:
        if self._image is None or (image is None and not frames) or (frames and self._video is None):
            raise InputError(f"{self._graphs.entry.name} takes {self._takes()}, which was not given")
        if self._video is None:
            return {"pixel_values": preprocess(to_rgb(image), self._image).pixel_values}
        clip = list(frames) if frames else [image]
        # A clip that is too short shows its frames longer.
        picks = [to_rgb(clip[i * len(clip) // self._video.frames]) for i in range(self._video.frames)]
        return {"pixel_values": preprocess_many(picks, self._image).pixel_values[None]}

    def _takes(self) -> str:
        if self._image is None:
            return "a sound (audio=…)"
        return "a picture" if self._video is None else "the frames of a clip (frames=[…])"

    def warm_up(self) -> None:
        """Load the graph and run it once."""
        if self._image is None:
            self(audio=np.zeros(16_000, np.float32))
        else:
            self(np.zeros((64, 64, 3), np.uint8))
