"""Writes the pages that follow from code: the verbs, the manifest, the events.

    python docs/generate.py

A test fails where a page is not what this would write.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from typer.models import ArgumentInfo

from edgemm.bundle.manifest import Manifest
from edgemm.cli.app import VERBS
from edgemm.cli.shared import PANEL
from edgemm.live.event_schema import event_schema
from edgemm.live.events import EVENT_TYPES
from edgemm.live.ledger import DROP_REASONS

DOCS = Path(__file__).resolve().parent
EXAMPLES = (DOCS.parent / "README.md", DOCS / "tutorial.md")
_NOTICE = "<!-- Written by docs/generate.py: change the code, then run it. -->\n\n"
_REQUIRED = "required"
_EVERY_EVENT = ("type", "id", "t_s", "source")
# What stands for a value of each type.
_VALUES = {str: "TEXT", Path: "PATH", int: "N", float: "X"}


def pages() -> dict[str, str]:
    """Path below docs/ → text of every page that follows from code."""
    made = {f"cli/{name}.md": _verb_page(name) for name in VERBS}
    made |= {"cli/index.md": _index(), "manifest.md": _manifest(), "events.md": _events()}
    return {name: _NOTICE + text for name, text in made.items()}


class _Option(NamedTuple):
    """An option or, without dashes, an argument of a verb. `default` is empty where there is none."""

    spelling: str
    panel: str
    default: str
    help: str

    @property
    def is_argument(self) -> bool:
        return not self.spelling.startswith("-")

    @property
    def usage(self) -> str:
        return self.spelling if self.default == _REQUIRED else f"[{self.spelling}]"


def _options(verb: str) -> list[_Option]:
    parameters = inspect.signature(_function(verb), eval_str=True).parameters.values()
    return [_option(p) for p in parameters if get_args(p.annotation)]


def _option(parameter: inspect.Parameter) -> _Option:
    annotation, info = get_args(parameter.annotation)
    takes = next(kind for kind in get_args(annotation) or (annotation,) if kind is not type(None))
    takes = get_args(takes)[0] if get_origin(takes) is list else takes
    default = _said(parameter.default)
    if isinstance(info, ArgumentInfo):
        return _Option(info.metavar or parameter.name.upper(), "Arguments", default, info.help or "")
    # In Annotated[…] Typer keeps the first spelling where a default would stand.
    words = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
    spelling = ", ".join(words or [f"--{parameter.name.replace('_', '-')}"])
    value = "" if takes is bool else f" {info.metavar or _VALUES[takes]}"
    return _Option(spelling + value, info.rich_help_panel or "Options", default, info.help or "")


def _said(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return _REQUIRED
    if isinstance(default, bool):
        return "yes" if default else ""
    return "" if default in (None, "") else f"`{default}`"


def _function(verb: str) -> Any:
    return importlib.import_module(f"edgemm.cli.{verb}").verb


def _verb_page(name: str) -> str:
    options = _options(name)
    usage = " ".join([f"edgemm {name}", *(o.usage for o in options if o.is_argument), "[OPTIONS]"])
    parts = [f"# edgemm {name}\n\n{_doc(_function(name))}\n\n```text\n{usage}\n```\n"]
    for panel in dict.fromkeys(o.panel for o in options if o.panel != PANEL):
        parts.append(f"## {panel}\n\n{_option_table(o for o in options if o.panel == panel)}")
    examples = _examples(name)
    if examples:
        parts.append(f"## Examples\n\n```sh\n{examples}\n```\n")
    parts.append("[Options of every verb](index.md#every-verb): `--json`, `--quiet`, `--config` and others.\n")
    return "\n".join(parts)


def _index() -> str:
    verbs = _table(("verb", "what it does"), ((f"[`{n}`]({n}.md)", _doc(_function(n))) for n in VERBS))
    shared = _option_table(o for o in _options(VERBS[0]) if o.panel == PANEL)
    codes = _table(
        ("exit code", "meaning"),
        (
            ("0", "done"),
            ("1", "it failed, for the reason in the last line of stderr (with `--json` also as `error`)"),
            ("2", "wrong usage"),
            ("3", "a check did not hold: parity, the accuracy gate, the speed gate"),
            ("130", "interrupted"),
        ),
    )
    return (
        f"# Commands\n\n```text\nedgemm VERB [WHAT] [OPTIONS]\n```\n\n{verbs}\n## Every verb\n\n{shared}\n"
        f"Results go to stdout, all else to stderr. `edgemm --install-completion` completes verbs and options in "
        f"your shell.\n\n{codes}"
    )


def _option_table(options: Iterable[_Option]) -> str:
    return _table(("name", "default", "meaning"), ((f"`{o.spelling}`", o.default, o.help) for o in options))


def _examples(verb: str) -> str:
    """The commands of the documents that begin with the verb; tests run them."""
    lines = (line for page in EXAMPLES for line in page.read_text().splitlines())
    return "\n".join(
        dict.fromkeys(re.sub(r"  +#", "  #", line) for line in lines if line.startswith(f"edgemm {verb} "))
    )


def _manifest() -> str:
    schema = Manifest.model_json_schema()
    intro = (
        "# Manifest\n\n`edgemm.json`, field by field, as the reader of a bundle checks it: a field that is not here, a "
        "value out of its range or a path that leaves the bundle is refused. What the files are is in "
        "[Bundle](bundle.md).\n"
    )
    parts = [
        f"## {name}\n\n{_prose(part['description'])}\n\n{_fields(part)}"
        for name, part in sorted(schema["$defs"].items())
    ]
    return "\n".join([intro, _fields(schema), *parts])


def _fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = (
        (f"`{field}`", _kind(part), _REQUIRED if field in required else _default(part))
        for field, part in schema["properties"].items()
    )
    return _table(("field", "value", "default"), rows)


def _default(schema: Mapping[str, Any]) -> str:
    value = schema.get("default")
    return f"`{value!r}`" if value not in (None, [], {}, "") and not isinstance(value, dict) else ""


def _events() -> str:
    intro = (
        "# Events\n\n`edgemm run --json` prints one event a line, and network sinks send the same documents. The first "
        "one is `started`, the last one `summary`. Every event has its `type`, an `id` that counts from 0, `t_s` "
        "(seconds on the pipeline's clock, as all times here) and, where a single one is meant, its `source`. Reasons "
        f"in `dropped` are {', '.join(f'`{reason}`' for reason in DROP_REASONS)}. Fields may be added, none is ever "
        "renamed. In Python, `edgemm.live.event_schema.event_schema()` is the JSON Schema.\n"
    )
    parts = [intro]
    for cls, schema in zip(EVENT_TYPES.values(), event_schema()["oneOf"], strict=True):
        own = ((name, part) for name, part in schema["properties"].items() if name not in _EVERY_EVENT)
        rows = ((f"`{name}`", _kind(part)) for name, part in own)
        parts.append(f"## {cls.type}\n\n{_doc(cls)}\n\n{_table(('field', 'value'), rows)}")
    return "\n".join(parts)


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in words; parts with a section of their own are linked to it."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(dict.fromkeys(map(_kind, choices)))
    if "const" in schema:
        return f"`{schema['const']!r}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return _array(schema)
    if schema.get("type") == "object":
        return _object(schema)
    return {"null": "`null`"}.get(schema.get("type", ""), schema.get("type", "any")) + _bounds(schema)


def _array(schema: Mapping[str, Any]) -> str:
    items = schema.get("prefixItems")
    if items:
        return f"[{', '.join(map(_kind, items))}]"
    count = f"{schema['minItems']} " if "minItems" in schema and schema["minItems"] == schema.get("maxItems") else ""
    return f"list of {count}{_kind(schema['items'])}"


def _object(schema: Mapping[str, Any]) -> str:
    if "properties" in schema:
        return "object: " + ", ".join(f"`{name}` {_kind(part)}" for name, part in schema["properties"].items())
    values = schema.get("additionalProperties")
    return f"object of {_kind(values)}" if isinstance(values, Mapping) and values else "object"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "length ≤"}
    said = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    said += [f"`{schema['pattern']}`"] if "pattern" in schema else []
    return f" ({', '.join(said)})" if said else ""


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _doc(thing: Any) -> str:
    return _prose(inspect.getdoc(thing) or "")


def _prose(text: str) -> str:
    """A docstring as a paragraph of markdown."""
    return re.sub("(`[^`]*`)|<", lambda found: found[1] or "&lt;", " ".join(text.split()))


if __name__ == "__main__":
    for page, written in pages().items():
        (DOCS / page).parent.mkdir(exist_ok=True)
        (DOCS / page).write_text(written, encoding="utf-8")
