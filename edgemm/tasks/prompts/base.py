"""What every prompt style takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import ChatSpec, TokensSpec
from edgemm.decoding.language import Follow, Inputs, count_on
from edgemm.errors import BundleError
from edgemm.processing.text import Tokenizer

# {"role", "content": parts}; a part is {"type": "text", "text"}, {"type": "image", "image"},
# {"type": "video", "video": frames, "times_s"} or {"type": "audio", "audio": float32 samples at the model's rate}.
Message = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Media:
    """One call of an encoder, and the token that its features stand for, in order of appearance.

    `pack` makes the features [T, hidden] of the encoder's outputs where they are not its first output as it is.
    `at_once` is how many rows of every feed and output may be encoded in one run, where rows do not depend on each
    other; None is all of them.
    """

    role: str
    feeds: Arrays
    token: int
    pack: Callable[[Arrays], NDArray[Any]] | None = None
    at_once: int | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids with placeholders expanded, the encoders' inputs, and what the decoder takes beside embeddings."""

    ids: list[int]
    media: tuple[Media, ...] = ()
    inputs: Inputs = field(default_factory=Inputs)
    follow: Follow = count_on


@dataclass(frozen=True, eq=False)
class Context:
    """The host side of one model."""

    processing: Processing
    tokens: TokensSpec
    tokenizer: Tokenizer

    @property
    def chat(self) -> ChatSpec:
        if self.processing.chat is None:
            raise BundleError("the model has no chat template", hint="export it again")
        return self.processing.chat

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered prompt: a template that writes the first token of every text itself gets no second."""
        first = None if self.tokens.bos is None else self.tokenizer.token_of(self.tokens.bos)
        twice = first is not None and text.startswith(first)
        return self.tokenizer.encode(text, specials=False if twice else None)


def parts_of(messages: Sequence[Message], kind: str) -> list[Any]:
    """The `kind` parts ("image", "video", "audio") of all messages, in order."""
    return [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == kind
    ]


def user(text: str, images: Sequence[Any] = (), audio: Any = None) -> dict[str, Any]:
    """One question: pictures, then sound, then words."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if audio is not None:
        parts.append({"type": "audio", "audio": audio})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def bare(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as a chat template sees them: parts without their pictures and sounds."""
    return [
        {**m, "content": m["content"]}
        if isinstance(m["content"], str)
        else {**m, "content": [{k: p[k] for k in ("type", "text") if k in p} for p in m["content"]]}
        for m in messages
    ]
