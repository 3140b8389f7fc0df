"""answer and caption: pictures, sound and words → words, for decoder-only models."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemm.decoding.language import Inputs, Language
from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.errors import BundleError, ContextFull, InputError
from edgemm.processing.audio import to_mono_16k
from edgemm.results import Answer, Caption
from edgemm.runtimes.base import Decoder, as_numpy
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Arrays, Context, Media, Message, Prompt, user
from edgemm.tasks.saying import OnText, Writer

CAPTION_PROMPT = "Describe the picture in one sentence."
_DEEP = "deepstack."
Features = dict[str, NDArray[Any]]  # outputs of an encoder by their names
_FEATURES = {"vision_encoder": "image_features", "audio_encoder": "audio_features"}


class Seen(NamedTuple):
    """Features [T, hidden] that stand for one media, the token of their places, and the deep ones by input name."""

    token: int
    values: NDArray[Any]
    deep: dict[str, NDArray[Any]]


class Answerer:
    """A chat model of a bundle. One call at a time."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self.writer = Writer(graphs)
        self.tokenizer = self.writer.tokenizer
        self.context = Context(graphs.entry.processing, self.writer.tokens, self.tokenizer)
        self._deep = tuple(n for n in graphs.inputs_of("decoder") if n.startswith(_DEEP))

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
        """Answer a question about one picture, a list of pictures, a sound, or none of them (`[]`)."""
        sound = None if audio is None else self._mono(audio, sample_rate_hz)
        if not question.strip():
            raise InputError("the question is empty")
        images = [] if frames is None else list(frames) if isinstance(frames, (list, tuple)) else [frames]
        return self.chat([user(question, images, sound)], generation=generation, on_text=on_text)

    def chat(
        self, messages: Sequence[Message], *, generation: Generation = AS_TRAINED, on_text: OnText = None
    ) -> Answer:
        """The next turn of a conversation; see `prompts.base.Message`."""
        start = time.perf_counter()
        prompt = make_prompt(messages, self.context)
        language, logits = self.read(prompt)
        out = self.writer.say(language, logits, generation, prompt.ids, on_text=on_text)
        return Answer(
            text=self.writer.text(out, generation),
            tokens=tuple(out.tokens),
            confidence=out.confidence,
            ttft_ms=(out.first_token_s - start) * 1e3,
            model_ms=(time.perf_counter() - start) * 1e3,
        )

    def caption(self, image: Any, *, generation: Generation = AS_TRAINED) -> Caption:
        """Describe one picture."""
        said = self(image, CAPTION_PROMPT, generation=generation)
        return Caption(said.text, said.tokens, said.confidence, said.model_ms)

    def warm_up(self) -> None:
        """Load the graphs and run them once."""
        self(np.zeros((32, 32, 3), np.uint8), "?", generation=Generation(max_new_tokens=2))

    def logits(self, images: Sequence[Any], question: str) -> NDArray[Any]:
        """Logits [V] of the first position after the prompt."""
        return self.prefill([user(question, list(images))])[1]

    def prefill(self, messages: Sequence[Message]) -> tuple[Language, NDArray[Any]]:
        """The decoder after the prompt of `messages`, and the logits [V] of what comes next.

        Raises ContextFull where the prompt does not fit, before any encoder runs.
        """
        return self.read(make_prompt(messages, self.context))

    def read(self, prompt: Prompt) -> tuple[Language, NDArray[Any]]:
        """As `prefill`, of a prompt that is made already."""
        decoder = self._graphs.decoder()
        if len(prompt.ids) >= decoder.capacity:
            raise ContextFull(
                f"the prompt has {len(prompt.ids)} tokens, the model takes {decoder.capacity}",
                hint="use fewer or smaller pictures",
            )
        embeds, deep = self.embeds(prompt, self.features(prompt))
        extras = {**prompt.inputs.extras, **deep}
        logits = decoder.prefill(embeds, positions=prompt.inputs.positions, extras=extras)[0, -1]
        return self.language(decoder, prompt, embeds), logits

    def language(self, decoder: Decoder, prompt: Prompt, embeds: NDArray[Any]) -> Language:
        """A decoder that goes on behind `prompt`, whose embeddings are like `embeds`."""

        def follow(past: int, batch: int) -> Inputs:
            more = prompt.follow(past, batch)
            nothing = np.zeros((batch, 1, embeds.shape[2]), embeds.dtype)
            return Inputs(more.positions, {**more.extras, **dict.fromkeys(self._deep, nothing)})

        return Language(decoder, self._graphs.embed(), follow)

    def _mono(self, audio: Any, sample_rate_hz: int) -> NDArray[np.float32]:
        spec = self.context.processing.audio
        if spec is None:
            raise InputError("this model sees and does not hear", hint="give pictures and words only")
        return to_mono_16k(audio, sample_rate_hz, spec.sample_rate_hz)

    def new_decoder(self) -> Decoder:
        """A decoder with an empty state of its own; its user closes it."""
        return self._graphs.decoder().fork(1)[0]

    def features(self, prompt: Prompt, known: MutableMapping[bytes, Features] | None = None) -> list[Seen]:
        """What the encoders make of each media of `prompt`, in order.

        What they made before is in `known`, by what they were fed; afterwards it holds this prompt's and no more.
        """
        if known is None:
            return [_seen(media, self._encode(media)) for media in prompt.media]
        keys = [_digest(media.feeds) for media in prompt.media]
        made: dict[bytes, Features] = {}
        for key, media in zip(keys, prompt.media, strict=True):
            made[key] = made.get(key) or known.get(key) or self._encode(media)
        known.clear()
        known.update(made)
        return [_seen(media, made[key]) for key, media in zip(keys, prompt.media, strict=True)]

    def embeds(
        self, prompt: Prompt, features: Sequence[Seen], first: int = 0
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Embeddings [1, S - first, hidden] with features in their places, and the deep features likewise."""
        ids = np.array([prompt.ids], np.int64)
        embeds = np.array(self._graphs.embed()(ids[:, first:]))
        deep = {name: np.zeros_like(embeds) for name in self._deep}
        for token in dict.fromkeys(seen.token for seen in features):
            own = [seen for seen in features if seen.token == token]
            places, before = ids[:, first:] == token, int((ids[:, :first] == token).sum())
            _place(embeds, places, np.concatenate([seen.values for seen in own])[before:])
            for name in self._deep:
                _place(deep[name], places, np.concatenate([seen.deep[name] for seen in own])[before:])
        return embeds, deep

    def stands(self, prompt: Prompt, features: Sequence[Seen]) -> list[Hashable]:
        """What stands at each position of a prompt: an id, or which row of which features."""
        rows: dict[int, list[Hashable]] = {}
        for seen in features:
            key = _digest({"": seen.values, **seen.deep})
            rows.setdefault(seen.token, []).extend((key, i) for i in range(len(seen.values)))
        waiting = {token: iter(own) for token, own in rows.items()}
        return [next(waiting[i], i) if i in waiting else i for i in prompt.ids]

    def _encode(self, media: Media) -> Features:
        session = self._graphs.session(media.role)
        runs = [{name: as_numpy(v) for name, v in session.run(feeds).items()} for feeds in _batches(media)]
        return runs[0] if len(runs) == 1 else {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _batches(media: Media) -> list[Arrays]:
    """The feeds of each run of the encoder."""
    if media.at_once is None:
        return [media.feeds]
    rows = len(next(iter(media.feeds.values())))
    return [{k: v[i : i + media.at_once] for k, v in media.feeds.items()} for i in range(0, rows, media.at_once)]


def _seen(media: Media, made: Features) -> Seen:
    packed = media.pack(made) if media.pack else made[_FEATURES[media.role]]
    deep = {name: value for name, value in made.items() if name.startswith(_DEEP)}
    return Seen(media.token, packed.reshape(-1, packed.shape[-1]), deep)


def _digest(arrays: Arrays) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()


def _place(target: NDArray[Any], places: NDArray[np.bool_], features: NDArray[Any]) -> None:
    if int(places.sum()) != len(features):
        raise BundleError(
            f"{int(places.sum())} placeholder tokens for {len(features)} features: "
            "the bundle's tokenizer and encoder do not fit",
            hint="export it again",
        )
    target[places] = features
