"""answer and caption: pictures and words → words, for decoder-only vision–language models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import TilesSpec, TokensSpec
from edgemm.decoding.generate import Generated, GenerationOptions, generate
from edgemm.errors import BundleError, ContextFull, InputError
from edgemm.processing.chat import render, user_message
from edgemm.processing.image import preprocess_many
from edgemm.processing.text import Tokenizer
from edgemm.processing.tiles import expand_images
from edgemm.results import Answer, Caption
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs

CAPTION_PROMPT = "Describe the picture in one sentence."


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids of a question, and the tiles that its image tokens stand for: [N, 3, H, W] or None."""

    ids: list[int]
    pixel_values: NDArray[np.float32] | None


def prompt_for(
    images: Sequence[Any],
    question: str,
    processing: Processing,
    tokenizer: Tokenizer | str | PathLike[str],
) -> Prompt:
    """The checkpoint's own prompt for a question about `images` (none, one or several)."""
    if processing.chat is None or processing.text is None or not isinstance(processing.image, TilesSpec):
        raise BundleError("the model lacks its chat template, its tokenizer or its tiles")
    words = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer, processing.text)
    text = render([user_message(question, len(images))], processing.chat)
    if not images:
        return Prompt(words.encode(text), None)
    seen = preprocess_many(list(images), processing.image)
    text = expand_images(text, seen.rows, seen.cols, processing.image.image_seq_len, processing.chat)
    return Prompt(words.encode(text), seen.pixel_values)


class Answerer:
    """A vision–language model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        if entry.processing.text is None or entry.tokens is None or entry.tokens.image is None:
            raise BundleError(f"{entry.name} lacks its tokenizer or its image token")
        self._graphs = graphs
        self._tokens: TokensSpec = entry.tokens
        self._image_token: int = entry.tokens.image
        self.tokenizer = Tokenizer(graphs.bundle.file(entry.processing.text.tokenizer), entry.processing.text)

    def __call__(
        self,
        frames: Any,
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about one picture, a list of pictures, or none (`[]`)."""
        if not question.strip():
            raise InputError("the question is empty")
        start = time.perf_counter()
        images = list(frames) if isinstance(frames, (list, tuple)) else [frames]
        out, text = self._generate(images, question, max_new_tokens, on_text)
        return Answer(
            text=text,
            tokens=tuple(out.tokens),
            confidence=out.confidence,
            ttft_ms=(out.first_token_s - start) * 1e3,
            model_ms=(time.perf_counter() - start) * 1e3,
        )

    def caption(self, image: Any, *, max_new_tokens: int = 64) -> Caption:
        """Describe one picture."""
        said = self(image, CAPTION_PROMPT, max_new_tokens=max_new_tokens)
        return Caption(said.text, said.tokens, said.confidence, said.model_ms)

    def warm_up(self) -> None:
        """Load the graphs and run them once."""
        self(np.zeros((32, 32, 3), np.uint8), "?", max_new_tokens=2)

    def logits(self, images: Sequence[Any], question: str) -> NDArray[Any]:
        """Logits [V] of the first position after the prompt."""
        return self._prefill(list(images), question)[1]

    def _prefill(self, images: list[Any], question: str) -> tuple[Any, NDArray[Any]]:
        prompt = prompt_for(images, question, self._graphs.entry.processing, self.tokenizer)
        decoder = self._graphs.decoder()
        if len(prompt.ids) >= decoder.capacity:
            raise ContextFull(
                f"the prompt has {len(prompt.ids)} tokens, the model takes {decoder.capacity}",
                hint="use fewer or smaller pictures",
            )
        return decoder, decoder.prefill(self._embeds(prompt))[0, -1]

    def _embeds(self, prompt: Prompt) -> NDArray[Any]:
        ids = np.array([prompt.ids], np.int64)
        embeds = np.array(self._graphs.embed()(ids))
        if prompt.pixel_values is None:
            return embeds
        session = self._graphs.session("vision_encoder")
        features = as_numpy(session.run({"pixel_values": prompt.pixel_values})["image_features"])
        places = ids == self._image_token
        if int(places.sum()) != len(features):
            raise BundleError(
                f"{int(places.sum())} image tokens for {len(features)} image features: "
                "the bundle's tokenizer and vision encoder do not fit",
                hint="export it again",
            )
        embeds[places] = features
        return embeds

    def _generate(
        self,
        images: list[Any],
        question: str,
        max_new_tokens: int,
        on_text: Callable[[str], None] | None,
    ) -> tuple[Generated, str]:
        decoder, logits = self._prefill(images, question)
        stream = self.tokenizer.stream()

        def tell(token: int) -> None:
            piece = stream.push(token)
            if on_text is not None and piece:
                on_text(piece)

        options = GenerationOptions(max_new_tokens, self._tokens.eos, on_token=tell)
        out = generate(decoder, self._graphs.embed(), logits, options)
        rest = stream.finish()
        if on_text is not None and rest:
            on_text(rest)
        return out, self.tokenizer.decode(out.tokens).strip()
