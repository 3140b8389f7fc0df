"""The JSON Schema (draft 2020-12) of `run --json`, derived from the event dataclasses."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from edgemm.live.events import EVENT_TYPES, SCHEMA_VERSION, Event

_SCALARS: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def event_schema(*, closed: bool = False) -> dict[str, Any]:
    """The schema of one line. Fields may be added in later versions, so a reader's schema allows
    unknown ones; `closed=True` forbids them, for tests of a writer."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"edgemm run --json, version {SCHEMA_VERSION}",
        "oneOf": [_event(cls, closed) for cls in EVENT_TYPES.values()],
    }


def _event(cls: type[Event], closed: bool) -> dict[str, Any]:
    schema = _object(cls, closed)
    schema["properties"] = {"type": {"const": cls.type}, **schema["properties"]}
    schema["required"] = ["type", *(name for name in schema["required"] if name != "source")]
    return schema


def _object(cls: type[Any], closed: bool) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    names = [item.name for item in fields(cls)]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _of(hints[name], closed) for name in names},
        "required": names,
    }
    if closed:
        schema["additionalProperties"] = False
    return schema


def _of(hint: Any, closed: bool) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if hint is type(None):
        return {"type": "null"}
    if hint is Any:
        return {}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_of(item, closed) for item in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], closed)}
    if origin is tuple:
        return _tuple(arguments, closed)
    if isinstance(hint, type) and is_dataclass(hint):
        return _object(hint, closed)
    raise TypeError(f"no JSON Schema for {hint!r}")


def _tuple(arguments: tuple[Any, ...], closed: bool) -> dict[str, Any]:
    item = _of(arguments[0], closed)
    if arguments[-1] is Ellipsis:
        return {"type": "array", "items": item}
    return {"type": "array", "items": item, "minItems": len(arguments), "maxItems": len(arguments)}


def required_fields(cls: type[Event]) -> list[str]:
    """The fields that an event cannot be made without, for documentation."""
    return [item.name for item in fields(cls) if item.default is MISSING]
