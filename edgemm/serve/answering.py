"""A conversation's next answer, by a model that holds conversations or by one that answers single questions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemm.errors import InputError, TaskUnavailable
from edgemm.serve.requests import ChatRequest, Turn

if TYPE_CHECKING:
    from edgemm.model import Model
    from edgemm.tasks.conversation import Conversation


@dataclass(frozen=True)
class Reply:
    """An answer; `prompt_tokens` is None where the model does not read its prompt as tokens."""

    text: str
    tokens: int
    prompt_tokens: int | None
    cut: bool


class Answering:
    """Answers for one model. The state of the last conversation is kept: a next request that begins like it reads
    only what is new.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._lock = model, threading.Lock()
        self._talk: Conversation | None = None
        try:
            self._talk = model.chat()
        except TaskUnavailable:
            if not {"answer", "caption"} & set(model.tasks):
                raise

    def reply(self, asked: ChatRequest, on_text: Callable[[str], None]) -> Reply:
        """`on_text` is told each new piece; what it raises ends the answer. Raises InputError, ContextFull."""
        last = asked.turns[-1]
        if self._talk is None or (last.sound is not None and len(asked.turns) == 1):
            found = self._single(asked, last, on_text)
            read = None
        else:
            if any(turn.sound is not None for turn in asked.turns):
                raise InputError("sound in a longer conversation is not supported", hint="ask it as a single question")
            with self._lock:
                self._talk.restore([(t.text, t.pictures, t.answer) for t in asked.turns[:-1]], asked.system)
                found = self._talk.say(last.text, last.pictures, on_text=on_text, generation=asked.generation)
                read = self._talk.prompt_tokens
        most = asked.generation.max_new_tokens
        return Reply(found.text, len(found.tokens), read, most is not None and len(found.tokens) >= most)

    def _single(self, asked: ChatRequest, turn: Turn, on_text: Callable[[str], None]) -> Any:
        if asked.system or len(asked.turns) > 1:
            raise InputError(
                f"{self._model.name} answers single questions", hint="send one user message, without instructions"
            )
        heard: dict[str, Any] = {}
        if turn.sound is not None:
            heard = {"audio": turn.sound[0], "sample_rate_hz": turn.sound[1]}
        if "answer" in self._model.tasks and (turn.text.strip() or heard):
            pictures = list(turn.pictures)
            return self._model.answer(pictures, turn.text, generation=asked.generation, on_text=on_text, **heard)
        if len(turn.pictures) != 1 or heard:
            raise InputError("there is no question", hint="send a text, or one picture alone to have it described")
        found = self._model.caption(turn.pictures[0], generation=asked.generation)
        on_text(found.text)
        return found

    def close(self) -> None:
        """Frees the conversation's state."""
        if self._talk is not None:
            self._talk.close()
