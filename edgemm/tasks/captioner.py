"""caption and answer: a picture and, where the model takes them, words → words, for encoder–decoders that see.

The encoders run once a picture and hand the decoder their cross-attention keys and values. Which encoders there are
says what a question is for: without a `text_encoder` it begins the decoder's output, one that takes `input_ids`
attends to the picture itself (BLIP's question encoder), one that takes `inputs_embeds` reads picture and prompt in a
row (Florence-2).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.decoding.generate import Generated
from edgemm.decoding.language import Language
from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.errors import BundleError, ContextFull, InputError
from edgemm.processing.image import preprocess, to_rgb
from edgemm.processing.regions import bare, regions, task_of, task_prompt
from edgemm.results import Answer, Caption, DetectedObject, Detections, Region
from edgemm.runtimes.base import Value, as_numpy
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.saying import OnText, Writer

Picture = NDArray[np.uint8]
_CROSS, _IMAGE_CROSS = "cross.", "image_cross."
CAPTION_TASK, DETECT_TASK = "<CAPTION>", "<OD>"


@dataclass(frozen=True, eq=False)
class Heard:
    """What the decoder attends to, and the ids that its output begins with."""

    cross: dict[str, Value]
    prompt: list[int]


class Captioner:
    """An encoder–decoder of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        image, text, tokens = entry.processing.image, entry.processing.text, entry.tokens
        if image is None or text is None or tokens is None or entry.generation is None:
            raise BundleError(f"{entry.name} lacks its image or text processing", hint="export it again")
        if tokens.decoder_start is None or not tokens.eos:
            raise BundleError(f"{entry.name} lacks its start or end token", hint="export it again")
        self._graphs = graphs
        self._image, self._tokens, self._start = image, tokens, tokens.decoder_start
        self._regions = entry.processing.regions
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
        """Answer a question about one picture. Raises InputError for another number of pictures, and for sound."""
        if audio is not None:
            raise InputError("this model sees and does not hear", hint="give a picture and words only")
        if not question.strip():
            raise InputError("the question is empty")
        images = list(frames) if isinstance(frames, (list, tuple)) else [frames]
        if len(images) != 1:
            raise InputError(f"{self._graphs.entry.name} answers about one picture, not {len(images)}")
        start = time.perf_counter()
        picture = to_rgb(images[0])
        out = self._say(self._hear(picture, question), generation, on_text)
        return Answer(
            text=self._text(out, generation),
            tokens=tuple(out.tokens),
            confidence=out.confidence,
            ttft_ms=(out.first_token_s - start) * 1e3,
            model_ms=(time.perf_counter() - start) * 1e3,
            regions=self._places(out, question, picture),
        )

    def caption(self, image: Any, *, prompt: str = "", generation: Generation = AS_TRAINED) -> Caption:
        """Describe one picture, in words that go on from `prompt`."""
        start = time.perf_counter()
        asked = prompt or (CAPTION_TASK if self._regions is not None else "")
        out = self._say(self._hear(to_rgb(image), asked), generation)
        return Caption(
            self._text(out, generation), tuple(out.tokens), out.confidence, (time.perf_counter() - start) * 1e3
        )

    def warm_up(self) -> None:
        """Load the graphs and run them once."""
        self._say(self._hear(np.zeros((32, 32, 3), np.uint8), "?"), Generation(max_new_tokens=2))

    def _text(self, out: Generated, generation: Generation) -> str:
        """The words; where a model names places, with the places written out."""
        text = self.writer.text(out, generation, specials=self._regions is not None)
        return text if self._regions is None else bare(text).strip()

    def _places(self, out: Generated, question: str, picture: Picture) -> tuple[Region, ...]:
        if self._regions is None:
            return ()
        size = (picture.shape[1], picture.shape[0])
        marked = self.tokenizer.decode(out.tokens, skip_specials=False)
        return regions(marked, task_of(question), size, self._regions)

    def prefill(self, image: Any, text: str = "") -> tuple[Language, NDArray[Any]]:
        """The decoder after its prompt, and the logits [V] of what comes next."""
        return self._prefill(self._hear(to_rgb(image), text))

    def _prefill(self, heard: Heard) -> tuple[Language, NDArray[Any]]:
        decoder, embed = self._graphs.decoder(), self._graphs.embed()
        if len(heard.prompt) >= decoder.capacity:
            raise ContextFull(f"the prompt has {len(heard.prompt)} tokens, the model takes {decoder.capacity}")
        logits = decoder.prefill(embed(np.array([heard.prompt], np.int64)), cross=heard.cross)[0, -1]
        return Language(decoder, embed), logits

    def _hear(self, picture: Picture, text: str) -> Heard:
        seen = self._see(picture)
        if "text_encoder" not in self._graphs.entry.components:
            said = self.tokenizer.encode(text, specials=False) if text else []
            return Heard(_named(seen, _CROSS), [self._start, *said])
        takes = self._graphs.inputs_of("text_encoder")
        read = self._question(seen, text) if "input_ids" in takes else self._task_prompt(seen, text)
        return Heard(self._read(read), [self._start])

    def _see(self, picture: Picture) -> dict[str, Value]:
        session = self._graphs.session("vision_encoder")
        keep = [n for n in session.outputs if n.startswith((_CROSS, _IMAGE_CROSS))]
        return session.run({"pixel_values": preprocess(picture, self._image).pixel_values}, keep=keep)

    def _question(self, seen: dict[str, Value], text: str) -> dict[str, Value]:
        ids = np.array([self.tokenizer.encode(text)], np.int64)
        return {"input_ids": ids, **_named(seen, _IMAGE_CROSS)}

    def _task_prompt(self, seen: dict[str, Value], text: str) -> dict[str, Value]:
        begin = [] if self._tokens.bos is None else [self._tokens.bos]
        words = self.tokenizer.encode(task_prompt(text), specials=False)
        ids = np.array([[*begin, *words, self._tokens.eos[0]]], np.int64)
        features = as_numpy(seen["image_features"])[None]
        return {"inputs_embeds": np.concatenate([features, self._graphs.embed()(ids)], axis=1)}

    def _read(self, feeds: dict[str, Value]) -> dict[str, Value]:
        """What the text encoder makes of `feeds`, for the decoder to attend to."""
        session = self._graphs.session("text_encoder")
        length = next(iter(feeds.values()))
        shape = as_numpy(length).shape[:2]
        longest = self._graphs.longest("text_encoder")
        if shape[1] > longest:
            raise ContextFull(f"picture and question have {shape[1]} positions, the model takes {longest}")
        mask = np.ones(shape, np.int64)
        keep = [n for n in session.outputs if n.startswith(_CROSS)]
        outputs = session.run({**feeds, "attention_mask": mask}, keep=keep)
        return {**_named(outputs, _CROSS), "cross_mask": mask}

    def _say(self, heard: Heard, generation: Generation, on_text: OnText = None) -> Generated:
        return self.writer.say(*self._prefill(heard), generation, heard.prompt, on_text=on_text)


class RegionDetector(Captioner):
    """detect, for models that write the objects of a picture down. All share the score of the whole text."""

    def __call__(self, image: Any, *, score_min: float = 0.0) -> Detections:  # type: ignore[override]
        """The objects of one picture, in the order that the model names them."""
        start = time.perf_counter()
        said = super().__call__(image, DETECT_TASK)
        named = [DetectedObject(r.label, said.confidence, r.box_px) for r in said.regions]
        objects = tuple(named) if said.confidence >= score_min else ()
        return Detections(objects, (time.perf_counter() - start) * 1e3)


def _named(values: dict[str, Value], prefix: str) -> dict[str, Value]:
    return {k: v for k, v in values.items() if k.startswith(prefix)}
