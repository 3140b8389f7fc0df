"""What clients ask, read into what tasks take: OpenAI's requests, with every wrong field named."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.decoding.options import Generation
from edgemm.errors import InputError, SourceError
from edgemm.processing.audio import Samples, load_audio
from edgemm.processing.image import to_rgb
from edgemm.processing.resample import Pixels

_SYSTEM = ("system", "developer")
_CHOICES = {"n": 1, "logprobs": False, "tools": [], "functions": [], "frequency_penalty": 0, "presence_penalty": 0}


@dataclass(frozen=True, eq=False)
class Turn:
    """What a user said: `text`, pictures uint8 [H, W, 3], sound float32 [samples] with its rate in Hz; and the
    `answer` that it got, "" for the turn that waits for one.
    """

    text: str
    pictures: tuple[Pixels, ...] = ()
    sound: tuple[Samples, int] | None = None
    answer: str = ""


@dataclass(frozen=True, eq=False)
class ChatRequest:
    """A conversation that waits for its next answer."""

    system: str
    turns: tuple[Turn, ...]
    generation: Generation
    stream: bool
    usage: bool


def chat_request(body: Any) -> ChatRequest:
    """The JSON of `POST /v1/chat/completions`. Raises InputError, SourceError for what cannot be used."""
    if not isinstance(body, dict):
        raise InputError("the request is no JSON object")
    for name, only in _CHOICES.items():
        if body.get(name) not in (None, only, []):
            raise InputError(f"{name} is not supported", hint=f"leave it out, or give {only}")
    system, turns = _conversation(body.get("messages"))
    extra = body.get("stream_options")
    usage = bool(extra.get("include_usage")) if isinstance(extra, dict) else False
    return ChatRequest(system, turns, _generation(body), bool(body.get("stream")), usage)


def embedding_inputs(body: Any) -> list[Any]:
    """The texts and pictures of `POST /v1/embeddings`: strings, or objects with an `image_url` as in chat."""
    given = body.get("input") if isinstance(body, dict) else None
    items = given if isinstance(given, list) else [given]
    if not items or any(not isinstance(item, (str, dict)) or not item for item in items):
        raise InputError("input is no text, picture or list of these", hint='give "input": "…" or a list of texts')
    return [picture(item) if isinstance(item, dict) else item for item in items]


def picture(part: Mapping[str, Any]) -> Pixels:
    """A part `{"image_url": {"url": "data:image/…;base64,…"}}`. Addresses on other machines are not fetched."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    head, found, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not found or not head.startswith("data:") or not head.endswith(";base64"):
        raise InputError("a picture is no data URL", hint='give "url": "data:image/jpeg;base64,…"')
    pixels: Pixels = media(_decoded(data, "a picture"), "the picture", to_rgb)
    return pixels


def sound(part: Mapping[str, Any]) -> tuple[Samples, int]:
    """A part `{"input_audio": {"data": base64, "format": …}}`; the format is seen from the data."""
    given = part.get("input_audio")
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, str):
        raise InputError("a sound has no data", hint='give "input_audio": {"data": "…", "format": "wav"}')
    samples: tuple[Samples, int] = media(_decoded(data, "a sound"), "the sound", load_audio)
    return samples


def media(data: bytes, what: str, read: Any) -> Any:
    """`data` as a file that `read` takes; in errors it is called `what`. Raises InputError."""
    with tempfile.NamedTemporaryFile(prefix="edgemm-") as file:
        file.write(data)
        file.flush()
        try:
            return read(Path(file.name))
        except (InputError, SourceError) as error:
            raise InputError(error.message.replace(file.name, what), hint=error.hint) from None


def _decoded(data: str, what: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{what} is not in base64") from None


def _conversation(messages: Any) -> tuple[str, tuple[Turn, ...]]:
    """Instructions, and turns: what one side says in several messages is one turn."""
    if not isinstance(messages, list) or not messages:
        raise InputError("there are no messages", hint='give "messages": [{"role": "user", "content": "…"}]')
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role in _SYSTEM and not turns:
            system.append(_read(message).text)
        elif role == "user":
            said = _read(message)
            turns.append(said if not turns or turns[-1].answer else _joined(turns.pop(), said))
        elif role == "assistant" and turns:
            last = turns.pop()
            turns.append(Turn(last.text, last.pictures, last.sound, f"{last.answer}{_read(message).text}"))
        else:
            raise InputError(
                f"a message of {role!r} cannot stand there", hint="system first, then user and assistant in turn"
            )
    if not turns or turns[-1].answer:
        raise InputError("the last message is not the user's")
    return "\n".join(system), tuple(turns)


def _read(message: Mapping[str, Any]) -> Turn:
    content = message.get("content")
    parts: Sequence[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts: list[str] = []
    pictures: list[Pixels] = []
    heard: tuple[Samples, int] | None = None
    for given in parts if isinstance(parts, list) else [None]:
        part: Mapping[str, Any] = given if isinstance(given, dict) else {}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            pictures.append(picture(part))
        elif kind == "input_audio" and heard is None:
            heard = sound(part)
        else:
            raise InputError(
                f"a part of type {kind!r} cannot be used there", hint="give text, image_url, and one input_audio"
            )
    return Turn("\n".join(texts), tuple(pictures), heard)


def _joined(one: Turn, other: Turn) -> Turn:
    texts = [text for text in (one.text, other.text) if text]
    return Turn("\n".join(texts), one.pictures + other.pictures, other.sound or one.sound)


def _generation(body: Mapping[str, Any]) -> Generation:
    """OpenAI's options by our names."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    form = body.get("response_format") or {}
    kind = form.get("type", "text") if isinstance(form, dict) else form
    if kind not in ("text", "json_schema"):
        raise InputError(f"response_format {kind!r} is not supported", hint="give text or json_schema")
    try:
        schema = form["json_schema"]["schema"] if kind == "json_schema" else None
        given = {
            "max_new_tokens": most, "temperature": body.get("temperature"), "top_p": body.get("top_p"),
            "seed": body.get("seed"), "stop": body.get("stop"), "schema": schema,
        }  # fmt: skip
        return Generation(**{name: value for name, value in given.items() if value is not None})
    except (TypeError, KeyError) as error:
        raise InputError(f"an option is missing or has the wrong type: {error}") from None
