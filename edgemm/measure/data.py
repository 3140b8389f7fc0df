"""Data sets: `metadata.jsonl` (the Hugging Face folder convention), or one folder a class."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.errors import InputError, SourceError
from edgemm.measure.recommendation import Liking
from edgemm.processing.media import sniff

METADATA = "metadata.jsonl"
_FIELDS = ("image", "audio", "file_name")

Object = tuple[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Row:
    """One example. `where` names it in errors ("metadata.jsonl line 3").

    `objects` are what is in a picture: a label, and x0, y0, x1, y1 in pixels; None where nothing is said of objects.
    `liking` is a row of recommendation data.
    """

    path: Path
    where: str
    text: str | None = None
    label: str | None = None
    objects: tuple[Object, ...] | None = None
    liking: Liking | None = None


def read_rows(data: Path, *, limit: int | None = None) -> list[Row]:
    """The examples of a data set, in order, at most `limit`.

    Raises SourceError where `data` is no data set, InputError that names the line of a torn or
    useless row.
    """
    if not data.is_dir():
        what = "is a file" if data.exists() else "does not exist"
        raise SourceError(f"{data} {what}", hint=f"give a directory with {METADATA}")
    rows = _metadata(data) if (data / METADATA).is_file() else _folders(data)
    found = [row for row, _ in zip(rows, range(limit) if limit else iter(int, 1), strict=False)]
    if not found:
        raise SourceError(f"{data} has no examples", hint=f"give a directory with {METADATA}, or a folder a class")
    return found


def _metadata(data: Path) -> Iterator[Row]:
    with (data / METADATA).open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(data, line, f"{data / METADATA} line {number}")


def _row(data: Path, line: bytes, where: str) -> Row:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}", hint="mend or delete the line") from error
    if not isinstance(values, dict):
        raise InputError(f"{where} is not a JSON object", hint='such as {"image": …, "label": …}')
    if "user" in values:
        return Row(data / METADATA, where, liking=_liking(data, values, where))
    name = next((values[f] for f in _FIELDS if values.get(f)), None)
    if not isinstance(name, str):
        raise InputError(f"{where} names no file", hint=f"give one of {', '.join(_FIELDS)}")
    path = _inside(data, name, where)
    if not path.is_file():
        raise InputError(f"{where} names {name}, which is missing", hint=f"paths begin at {data}")
    text, label = (_text(values, key, where) for key in ("text", "label"))
    return Row(path, where, text, label, objects=_objects(values.get("objects"), where))


def _inside(data: Path, name: str, where: str) -> Path:
    if not (data / name).resolve().is_relative_to(data.resolve()):
        raise InputError(f"{where} points outside the data set: {name}", hint="copy the file in")
    return data / name


def _liking(data: Path, values: dict[str, Any], where: str) -> Liking:
    """`user` and `item`: the path of a picture in the data set, else a text. `score`: a number of 0 or more."""
    both = [_text(values, key, where) for key in ("user", "item")]
    score = values.get("score", 1)
    if not all(both) or isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score < 1e9:
        raise InputError(
            f"{where} lacks its item, or has no score of 0 or more",
            hint='such as {"user": "likes boats", "item": "sail.jpg", "score": 1}',
        )
    user, item = (name if " " in name else _picture(data, name, where) for name in both if name)
    return Liking(user, item, float(score))


def _picture(data: Path, name: str, where: str) -> str | Path:
    suffix = Path(name).suffix.lower()
    return _inside(data, name, where) if suffix and (data / name).is_file() else name


def _objects(value: Any, where: str) -> tuple[Object, ...] | None:
    """`{"bbox": [[x, y, w, h], …], "category": [name, …]}`, in pixels."""
    if value is None:
        return None
    try:
        boxes = [tuple(map(float, box)) for box in value["bbox"]]
        names = [str(name) for name in value["category"]]
        return tuple((n, (x, y, x + w, y + h)) for n, (x, y, w, h) in zip(names, boxes, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: objects is {str(value)[:80]!r}, a bbox and a category for each were expected",
            hint='such as {"bbox": [[x, y, width, height]], "category": ["cup"]}, in pixels',
        ) from error


def _text(values: dict[str, Any], key: str, where: str) -> str | None:
    value = values.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"{where}: {key} is {value!r}, a text was expected", hint="write it in quotes")


def _folders(data: Path) -> Iterator[Row]:
    for folder in sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and _is_picture(p)):
            yield Row(path, str(path), label=folder.name.replace("_", " "))


def _is_picture(path: Path) -> bool:
    try:
        return sniff(path) == "image"
    except SourceError:
        return False
