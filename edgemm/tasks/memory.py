"""The tasks of a model that writes over a memory of pictures, and whose cells are classes and objects (Frambicus)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.decoding.generate import Generated
from edgemm.decoding.language import Language
from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.errors import BundleError, ContextFull, InputError
from edgemm.processing.memory import plain_question
from edgemm.results import Answer, Caption, Description
from edgemm.tasks.classify import Classifier
from edgemm.tasks.detect import Floats, SoftmaxDetector
from edgemm.tasks.dual import DualEncoder, Vectors
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.saying import OnText, Writer
from edgemm.tasks.sight import Memory, Sight


class Narrator:
    """caption, answer and describe. A prompt is the start token, the question if there is one, and the task's token."""

    def __init__(self, graphs: Graphs) -> None:
        generation, tokens = graphs.entry.generation, graphs.entry.tokens
        if generation is None or tokens is None or tokens.bos is None or not tokens.eos:
            raise BundleError(f"{graphs.entry.name} lacks its special tokens", hint="export it again")
        self._graphs, self._begin, self._tasks = graphs, tokens.bos, generation.tasks
        self.sight = Sight.of(graphs)
        self.writer = Writer(graphs)
        self.tokenizer = self.writer.tokenizer

    def __call__(
        self,
        frames: Any,
        question: str,
        *,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        generation: Generation = AS_TRAINED,
        on_text: OnText = None,
    ) -> Answer:
        """Answer a question about 0…N pictures in order. Raises InputError for an empty question, and for sound."""
        if audio is not None:
            raise InputError("this model reads the question", hint="give it in words, or the sound alone")
        start = time.perf_counter()
        asked = plain_question(question) if self.sight.spec.plain_questions else question.strip()
        if not asked:
            raise InputError("the question is empty")
        images = [] if frames is None else list(frames) if isinstance(frames, (list, tuple)) else [frames]
        out = self._say("answer", self.sight.remember(images), asked, generation, on_text)
        return Answer(
            text=self.writer.text(out, generation),
            tokens=tuple(out.tokens),
            confidence=out.confidence,
            ttft_ms=(out.first_token_s - start) * 1e3,
            model_ms=(time.perf_counter() - start) * 1e3,
        )

    def caption(self, image: Any, *, generation: Generation = AS_TRAINED) -> Caption:
        """One sentence about one picture."""
        start = time.perf_counter()
        out = self._say("caption", self.sight.remember([image]), "", generation)
        text = self.writer.text(out, generation)
        return Caption(text, tuple(out.tokens), out.confidence, (time.perf_counter() - start) * 1e3)

    def describe(
        self, frames: Sequence[Any], times_s: Sequence[float] | None = None, *, generation: Generation = AS_TRAINED
    ) -> Description:
        """What happens in a clip: its frames in order, with their times in seconds on any clock."""
        start = time.perf_counter()
        if not len(frames):
            raise InputError("there is no frame to describe")
        out = self._say("describe", self.sight.remember(frames, times_s), "", generation)
        text = self.writer.text(out, generation)
        return Description(text, tuple(out.tokens), out.confidence, (time.perf_counter() - start) * 1e3)

    def warm_up(self) -> None:
        """Load the graphs and run them once."""
        picture = np.zeros((32, 32, 3), np.uint8)
        self._say("caption", self.sight.remember([picture]), "", Generation(max_new_tokens=2))

    def prefill(
        self, task: str, frames: Sequence[Any], text: str = "", times_s: Sequence[float] | None = None
    ) -> tuple[Language, NDArray[Any]]:
        """The decoder after the prompt of a task, and the logits [V] of what comes next."""
        return self._prefill(self.sight.remember(frames, times_s), self._prompt(task, text))

    def _prompt(self, task: str, text: str) -> list[int]:
        words = self.tokenizer.encode(text, specials=False) if text else []
        return [self._begin, *words, self._tasks[task]]

    def _prefill(self, memory: Memory, prompt: list[int]) -> tuple[Language, NDArray[Any]]:
        decoder, embed = self._graphs.decoder(), self._graphs.embed()
        if len(prompt) >= decoder.capacity:
            raise ContextFull(f"the prompt has {len(prompt)} tokens, the model takes {decoder.capacity}")
        logits = decoder.prefill(embed(np.array([prompt], np.int64)), cross=memory.cross)[0, -1]
        return Language(decoder, embed), logits

    def _say(self, task: str, memory: Memory, text: str, generation: Generation, on_text: OnText = None) -> Generated:
        prompt = self._prompt(task, text)
        return self.writer.say(*self._prefill(memory, prompt), generation, prompt, on_text=on_text)


class GridDetector(SoftmaxDetector):
    """detect: every cell of the grid is a query, an object or none.

    Neighbouring cells now and then find the same object: set prediction unlearns that only in long training.
    """

    _ONE = 0.4  # boxes of one label that share more are of one object

    def __init__(self, graphs: Graphs) -> None:
        self._sight = Sight.of(graphs)
        self.names = graphs.labels("detect")

    def queries(self, image: Any) -> tuple[Floats, Floats]:
        """As for other detectors; of a picture that was looked at before, from memory."""
        grid = self._sight.look(image).grid
        return grid["logits"].astype(np.float32), grid["pred_boxes"].astype(np.float32)

    def distinct(self, scores: Floats, classes: NDArray[np.int64], boxes: Floats) -> list[int]:
        """The surest of each object's boxes (non-maximum suppression within a label)."""
        import cv2

        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        return list(cv2.dnn.NMSBoxesBatched(corners.tolist(), scores.tolist(), classes.tolist(), 0.0, self._ONE))


class GridClassifier(Classifier):
    """classify: the picture's classes are the mean of its cells'."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__(graphs)
        self._sight = Sight.of(graphs)

    def probabilities(
        self,
        image: Any = None,
        *,
        frames: Sequence[Any] | None = None,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
    ) -> NDArray[np.float32]:
        """The probability of every class, [classes]."""
        if image is None or frames is not None or audio is not None:
            raise InputError(f"{self._graphs.entry.name} takes a picture, which was not given, and nothing else")
        logits = self._sight.look(image).cell_logits.astype(np.float32).mean(0)
        weights = np.exp(logits - logits.max())
        result: NDArray[np.float32] = weights / weights.sum()
        return result


class MemoryEncoder(DualEncoder):
    """embed, retrieve and recommend: a picture by its memory, a text by what the decoder makes of it."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__(graphs)
        tokens, generation = graphs.entry.tokens, graphs.entry.generation
        if tokens is None or tokens.bos is None or generation is None or "recommend" not in generation.tasks:
            raise BundleError(f"{graphs.entry.name} lacks its special tokens", hint="export it again")
        self._ends = (tokens.bos, generation.tasks["recommend"])
        self._sight = Sight.of(graphs)
        if self._tokenizer is not None:
            self._tokenizer.cut_at(self.similarity.text_tokens - 2)

    def image(self, image: Any) -> Vectors:
        """Unit vector [E] of one picture."""
        return self._sight.remember([image]).embedding

    def _ids(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        return [self._ends[0], *self._tokenizer.encode(text, specials=False), self._ends[1]]

    def _beside(self) -> dict[str, Any]:
        return dict(self._sight.remember([]).cross)
