"""`metadata.jsonl`, the Hugging Face folder convention: its lines, and the files that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemm.errors import InputError

METADATA = "metadata.jsonl"
MEDIA = ("image", "audio", "video", "file_name")

Values = dict[str, Any]


def lines_of(data: Path) -> Iterator[tuple[Values, str]]:
    """What every line of a data set says, and what errors call the line ("… line 3"). Blank lines are left out.

    Raises InputError for a line that is no JSON object.
    """
    with (data / METADATA).open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{data / METADATA} line {number}"
                yield _values(line, where), where


def _values(line: bytes, where: str) -> Values:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}", hint="mend or delete the line") from error
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a JSON object", hint='such as {"image": …, "label": …}')
    return values


def media_of(data: Path, values: Values, where: str) -> list[tuple[str, Path]]:
    """The files that a line names, each with its field, in the order of `MEDIA`.

    Raises InputError for one that is missing or outside the data set.
    """
    named = [(field, values[field]) for field in MEDIA if values.get(field) and isinstance(values[field], str)]
    return [(field, _file(data, name, where)) for field, name in named]


def _file(data: Path, name: str, where: str) -> Path:
    path = inside(data, name, where)
    if not path.is_file():
        raise InputError(f"{where} names {name}, which is missing", hint=f"paths begin at {data}")
    return path


def inside(data: Path, name: str, where: str) -> Path:
    """The path of `name`. Raises InputError where it leads out of the data set."""
    if not (data / name).resolve().is_relative_to(data.resolve()):
        raise InputError(f"{where} points outside the data set: {name}", hint="copy the file in")
    return data / name


def text_of(values: Values, key: str, where: str) -> str | None:
    """A field that is a text, or None where there is none. Raises InputError for anything else."""
    value = values.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"{where}: {key} is {value!r}, a text was expected", hint="write it in quotes")


def texts_of(values: Values, key: str, where: str) -> tuple[str, ...]:
    """A field that is a text or a list of texts; none where there is none. Raises InputError for anything else."""
    value = values.get(key)
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise InputError(
        f"{where}: {key} is {str(value)[:80]}, a text or a list of texts was expected",
        hint=f'such as {{"{key}": "…"}} or {{"{key}": ["…", "…"]}}',
    )
