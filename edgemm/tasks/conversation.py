"""Several turns with one model: what its decoder has read of a conversation stays read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Self, Unpack

from numpy.typing import NDArray

from edgemm.decoding.generate import Generated
from edgemm.decoding.language import Language
from edgemm.decoding.options import Generation, GenerationKeywords, chosen
from edgemm.errors import ContextFull, InputError, TaskUnavailable
from edgemm.processing.image import to_rgb
from edgemm.results import Answer
from edgemm.runtimes.base import Decoder
from edgemm.tasks.answer import Answerer, Features
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Message, Prompt, user


class Conversation:
    """A conversation about pictures, made by `Model.chat`. It has a decoder state of its own; close it after use.

    Each turn is rendered by the checkpoint's chat template with all turns before it. Of the tokens that come out,
    those that the decoder has read already are not read again: only what differs from them is taken back, and only
    what is new is prefilled. Pictures are encoded once.
    """

    def __init__(self, answerer: Any, lock: threading.RLock, system: str = "") -> None:
        if not isinstance(answerer, Answerer):
            raise TaskUnavailable("this model answers single questions and holds no conversation", hint="use answer")
        self._answerer, self._lock = answerer, lock
        self._decoder: Decoder | None = answerer.new_decoder()
        self._first = _instructions(system)
        self._turns: list[tuple[Message, Message]] = []
        self._read: list[Hashable] = []  # what stands at each position of the state
        self._seen: dict[bytes, Features] = {}
        self._prefilled = self._prompt_tokens = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns so far."""
        return (*self._first, *(message for turn in self._turns for message in turn))

    @property
    def prefilled(self) -> int:
        """How many tokens the last turn had to read before its answer; the others were in the state."""
        return self._prefilled

    @property
    def prompt_tokens(self) -> int:
        """How many tokens stood before the last answer."""
        return self._prompt_tokens

    def restore(self, turns: Sequence[tuple[str, Any, str]], system: str = "") -> None:
        """Take up a conversation that was: its turns, oldest first, as words, pictures and the model's answer.

        What the decoder has read is not read again as far as both conversations begin alike.
        """
        self._first = _instructions(system)
        self._turns = [(user(text, _pictures(images)), _said(words)) for text, images, words in turns]

    def say(
        self,
        text: str,
        images: Any = (),
        *,
        on_text: Callable[[str], None] | None = None,
        generation: Generation | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """The model's next turn after yours: words, and a picture or a list of pictures where there are new ones.

        `on_text` is given each new piece of text; what it raises ends the turn. Generation options are as for
        `Model.answer`. A turn that failed is not part of the conversation. Raises ContextFull where the conversation
        has become too long.
        """
        if not text.strip():
            raise InputError("the question is empty")
        how = chosen(generation, options)
        start = time.perf_counter()
        asked = user(text, _pictures(images))
        with self._lock:
            prompt = make_prompt([*self.messages, asked], self._answerer.context)
            out = self._generate(prompt, how, on_text)
            words = self._answerer.writer.text(out, how)
            self._turns.append((asked, _said(words)))
        return Answer(
            text=words,
            tokens=tuple(out.tokens),
            confidence=out.confidence,
            ttft_ms=(out.first_token_s - start) * 1e3,
            model_ms=(time.perf_counter() - start) * 1e3,
        )

    def drop(self, turns: int = 1) -> None:
        """Forget the oldest `turns`: questions, pictures and answers. The next turn reads the rest anew."""
        if not 0 <= turns <= len(self._turns):
            raise InputError(f"there are {len(self._turns)} turns, {turns} cannot be dropped")
        del self._turns[:turns]

    def close(self) -> None:
        """Free the decoder's state; nothing can be said afterwards."""
        with self._lock:
            if self._decoder is not None:
                self._decoder.close()
            self._decoder, self._read, self._seen = None, [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(self, prompt: Prompt, how: Generation, on_text: Callable[[str], None] | None) -> Generated:
        writer, decoder = self._answerer.writer, self._open()
        language, logits = self._prefill(decoder, prompt)
        searches = (writer.spec.num_beams if how.beams is None else how.beams) > 1
        if searches:
            # Beams end in rows of different words: they are searched beside the state, which stays at the prompt.
            with closing(decoder.fork(1)[0]) as twin:
                return writer.say(replace(language, decoder=twin), logits, how, prompt.ids, on_text=on_text)
        said: list[int] = []
        try:
            return writer.say(language, logits, how, prompt.ids, on_text=on_text, on_token=said.append)
        finally:
            self._read = [*self._read, *said][: decoder.length]

    def _prefill(self, decoder: Decoder, prompt: Prompt) -> tuple[Language, NDArray[Any]]:
        """The decoder after `prompt`, of which it reads what it has not read, and the logits [V] of what follows."""
        if len(prompt.ids) >= decoder.capacity:
            raise ContextFull(
                f"the conversation has {len(prompt.ids)} tokens, the model takes {decoder.capacity}",
                hint="forget its oldest turns with drop(), or begin a new one with model.chat()",
            )
        answerer = self._answerer
        features = answerer.features(prompt, self._seen)
        stands = answerer.stands(prompt, features)
        keep = self._kept(prompt, stands)
        if keep < decoder.length:
            decoder.truncate(keep)
            del self._read[keep:]
        embeds, deep = answerer.embeds(prompt, features, keep)
        rest = prompt.inputs.behind(keep)
        logits = decoder.prefill(embeds, positions=rest.positions, extras={**rest.extras, **deep})[0, -1]
        self._read, self._prefilled, self._prompt_tokens = stands, len(prompt.ids) - keep, len(prompt.ids)
        return answerer.language(decoder, prompt, embeds), logits

    def _kept(self, prompt: Prompt, stands: Sequence[Hashable]) -> int:
        """How many positions of the state serve for `prompt`; the last of the prompt gives the logits, and is read."""
        pairs = zip(self._read, stands[:-1], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._read), len(stands) - 1))
        mask, image = self._answerer.context.processing.mask, self._answerer.context.tokens.image
        if mask is not None and mask.kind == "prefix":
            return 0  # every position has seen the whole prompt
        while mask is not None and same and image == prompt.ids[same] == prompt.ids[same - 1]:
            same -= 1  # the tokens of one picture have seen each other
        return same

    def _open(self) -> Decoder:
        if self._decoder is None:
            raise InputError("the conversation is closed", hint="begin a new one with model.chat()")
        return self._decoder


def _instructions(system: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": [{"type": "text", "text": system}]},) if system else ()


def _said(words: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": words}]}


def _pictures(images: Any) -> list[Any]:
    return [to_rgb(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
