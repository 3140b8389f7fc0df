"""answer and caption: pictures, sound and words → words, for decoder-only models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import TokensSpec
from edgemm.decoding.generate import Generated, GenerationOptions, generate
from edgemm.decoding.language import Inputs, Language
from edgemm.errors import BundleError, ContextFull, InputError
from edgemm.processing.text import Tokenizer
from edgemm.results import Answer, Caption
from edgemm.runtimes.base import as_numpy
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Context, Media, Message, Prompt, user

CAPTION_PROMPT = "Describe the picture in one sentence."
_DEEP = "deepstack."
_FEATURES = {"vision_encoder": "image_features", "audio_encoder": "audio_features"}


class Answerer:
    """A chat model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        entry = graphs.entry
        if entry.processing.text is None or entry.tokens is None:
            raise BundleError(f"{entry.name} lacks its tokenizer or its special tokens", hint="export it again")
        self._graphs = graphs
        self._tokens: TokensSpec = entry.tokens
        self.tokenizer = Tokenizer(graphs.bundle.file(entry.processing.text.tokenizer), entry.processing.text)
        self.context = Context(entry.processing, entry.tokens, self.tokenizer)
        self._deep = tuple(n for n in graphs.inputs_of("decoder") if n.startswith(_DEEP))

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
        images = list(frames) if isinstance(frames, (list, tuple)) else [frames]
        return self.chat([user(question, images)], max_new_tokens=max_new_tokens, on_text=on_text)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """The next turn of a conversation; see `prompts.base.Message`."""
        start = time.perf_counter()
        out, text = self._generate(messages, max_new_tokens, on_text)
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
        return self.prefill([user(question, list(images))])[1]

    def prefill(self, messages: Sequence[Message]) -> tuple[Language, NDArray[Any]]:
        """The decoder after the prompt of `messages`, and the logits [V] of what comes next.

        Raises ContextFull where the prompt does not fit, before any encoder runs.
        """
        prompt = make_prompt(messages, self.context)
        decoder = self._graphs.decoder()
        if len(prompt.ids) >= decoder.capacity:
            raise ContextFull(
                f"the prompt has {len(prompt.ids)} tokens, the model takes {decoder.capacity}",
                hint="use fewer or smaller pictures",
            )
        embeds, deep = self._embeds(prompt)
        extras = {**prompt.inputs.extras, **deep}
        logits = decoder.prefill(embeds, positions=prompt.inputs.positions, extras=extras)[0, -1]

        def follow(past: int, batch: int) -> Inputs:
            more = prompt.follow(past, batch)
            nothing = np.zeros((batch, 1, embeds.shape[2]), embeds.dtype)
            return Inputs(more.positions, {**more.extras, **dict.fromkeys(self._deep, nothing)})

        return Language(decoder, self._graphs.embed(), follow), logits

    def _embeds(self, prompt: Prompt) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Embeddings [1, S, hidden] with features in their places, and the deep features likewise."""
        ids = np.array([prompt.ids], np.int64)
        embeds = np.array(self._graphs.embed()(ids))
        deep = {name: np.zeros_like(embeds) for name in self._deep}
        features: dict[int, list[NDArray[Any]]] = {}
        layers: dict[int, list[dict[str, NDArray[Any]]]] = {}
        for media in prompt.media:
            found, below = self._encode(media)
            features.setdefault(media.token, []).append(found)
            layers.setdefault(media.token, []).append(below)
        for token, values in features.items():
            _place(embeds, ids == token, np.concatenate(values))
            for name in self._deep:
                _place(deep[name], ids == token, np.concatenate([x[name] for x in layers[token]]))
        return embeds, deep

    def _encode(self, media: Media) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        session = self._graphs.session(media.role)
        outputs = {k: as_numpy(v) for k, v in session.run(media.feeds).items()}
        found = media.pack(outputs) if media.pack else outputs[_FEATURES[media.role]]
        return found.reshape(-1, found.shape[-1]), {k: v for k, v in outputs.items() if k.startswith(_DEEP)}

    def _generate(
        self,
        messages: Sequence[Message],
        max_new_tokens: int,
        on_text: Callable[[str], None] | None,
    ) -> tuple[Generated, str]:
        language, logits = self.prefill(messages)
        stream = self.tokenizer.stream()

        def tell(token: int) -> None:
            piece = stream.push(token)
            if on_text is not None and piece:
                on_text(piece)

        out = generate(language, logits, GenerationOptions(max_new_tokens, self._tokens.eos, on_token=tell))
        rest = stream.finish()
        if on_text is not None and rest:
            on_text(rest)
        return out, self.tokenizer.decode(out.tokens).strip()


def _place(target: NDArray[Any], places: NDArray[np.bool_], features: NDArray[Any]) -> None:
    if int(places.sum()) != len(features):
        raise BundleError(
            f"{int(places.sum())} placeholder tokens for {len(features)} features: "
            "the bundle's tokenizer and encoder do not fit",
            hint="export it again",
        )
    target[places] = features
