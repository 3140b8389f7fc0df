"""Messages → the prompt text, by the checkpoint's own chat template.

A template comes from outside: it runs in Jinja's immutable sandbox and sees plain data only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgemm.bundle.spec import ChatSpec
from edgemm.errors import BundleError, InputError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]


def user_message(text: str, images: int = 0) -> dict[str, Any]:
    """One question about `images` pictures, which come before the text."""
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def render(
    messages: Sequence[Message],
    spec: ChatSpec,
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """The prompt text of a conversation, image tokens where the template puts them.

    Each message has `role` and `content`, a string or parts `{"type": "text", "text"}` and
    `{"type": "image"}`. Raises `InputError` for malformed messages or where the template refuses
    them, `BundleError` for a broken one.
    """
    import jinja2

    _check(messages)
    template = _compile(spec.template)
    seen = {**spec.special_tokens, **variables, "messages": list(messages)}
    seen.setdefault("tools", None)
    seen.setdefault("documents", None)
    try:
        return template.render(**_plain(seen), add_generation_prompt=add_generation_prompt)
    except jinja2.exceptions.SecurityError as error:
        raise BundleError(f"the chat template does what it must not: {error}") from error
    except (jinja2.TemplateError, TypeError, LookupError, ArithmeticError, ValueError) as error:
        raise InputError(f"the chat template refuses these messages: {error}") from error


def _check(messages: Sequence[Message]) -> None:
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError("a message is malformed: expected a mapping with 'role' and 'content'")
    if not messages:
        raise InputError("there are no messages: expected at least one")


def _plain(value: Any) -> Any:
    """The value as JSON types; anything else becomes a harmless `<name of its type>`."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return f"<{type(value).__name__}>"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks words for training; here only its body counts."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise BundleError(f"the chat template is broken: {error}", hint="export the bundle again") from error
