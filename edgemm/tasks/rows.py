"""Data sets: `metadata.jsonl` (the Hugging Face folder convention), or one folder a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.errors import InputError, SourceError
from edgemm.processing.media import Kind, sniff
from edgemm.tasks.liking import Liking
from edgemm.tasks.metadata import MEDIA, METADATA, Values, inside, lines_of, media_of, text_of, texts_of

Object = tuple[str, tuple[float, float, float, float]]
_KINDS: dict[str, Kind] = {"image": "image", "audio": "audio", "video": "video"}


@dataclass(frozen=True)
class Row:
    """One example. `where` names it in errors ("metadata.jsonl line 3"); `kind` is what its file is taken for.

    `texts` are captions of a picture, each as good as the others, or the transcript of a sound. `answers` are what
    people answered to `question`; `sound` is what is heard beside a picture or video that the question is about.
    `objects` are what is in a picture: a label, and x0, y0, x1, y1 in pixels; None where nothing is said of objects.
    `liking` is a row of recommendation data.
    """

    path: Path
    where: str
    kind: Kind = "image"
    texts: tuple[str, ...] = ()
    label: str | None = None
    objects: tuple[Object, ...] | None = None
    liking: Liking | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    sound: Path | None = None


def read_rows(data: Path, *, limit: int | None = None) -> list[Row]:
    """The examples of a data set, in order, at most `limit`.

    A line of metadata.jsonl names a file under `image`, `audio` or `video`, or under `file_name`, where its content
    says what it is. Raises SourceError where `data` is no data set, InputError that names the line of a torn or
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
    for values, where in lines_of(data):
        yield _row(data, values, where)


def _row(data: Path, values: Values, where: str) -> Row:
    if "user" in values:
        return Row(data / METADATA, where, liking=_liking(data, values, where))
    path, kind, sound = _media(data, values, where)
    return Row(
        path,
        where,
        kind,
        texts=texts_of(values, "text", where),
        label=text_of(values, "label", where),
        objects=_objects(values.get("objects"), where),
        question=text_of(values, "question", where),
        answers=texts_of(values, "answer", where),
        sound=sound,
    )


def _media(data: Path, values: Values, where: str) -> tuple[Path, Kind, Path | None]:
    """The file of a row, its kind, and the sound beside it."""
    found = [(_kind(field, path, where), path) for field, path in media_of(data, values, where)]
    if not found:
        raise InputError(f"{where} names no file", hint=f"give one of {', '.join(MEDIA)}")
    heard = [path for kind, path in found if kind == "audio"]
    kind, path = next((x for x in found if x[0] != "audio"), found[0])
    if len(found) == 1:
        return path, kind, None
    if (len(found), len(heard)) != (2, 1) or not {"question", "answer"} & values.keys():
        named = " and ".join(p.name for _, p in found)
        raise InputError(
            f"{where} names {named}: one file was expected",
            hint="only a question may be about a picture or a video, and audio",
        )
    return path, kind, heard[0]


def _kind(field: str, path: Path, where: str) -> Kind:
    if field in _KINDS:
        return _KINDS[field]
    try:
        return sniff(path)
    except SourceError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error


def _liking(data: Path, values: Values, where: str) -> Liking:
    """`user` and `item`: the path of a picture in the data set, else a text. `score`: a number of 0 or more."""
    both = [text_of(values, key, where) for key in ("user", "item")]
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
    return inside(data, name, where) if suffix and (data / name).is_file() else name


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


def _folders(data: Path) -> Iterator[Row]:
    for folder in sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and _is_picture(p)):
            yield Row(path, str(path), label=folder.name.replace("_", " "))


def _is_picture(path: Path) -> bool:
    try:
        return sniff(path) == "image"
    except SourceError:
        return False
