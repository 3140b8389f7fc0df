"""Real photographs with a list of what is in them, as a data set: for evaluation, and never composed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemm.errors import InputError
from edgemm.export.frambicus.scenes.dataset import METADATA
from edgemm.processing.image import to_rgb


def write_photos(out: Path | str, photos: Path | str, listed: Path | str) -> Path:
    """`listed` is a text that people can read: one photograph a line, its file and its nouns, synonyms after `|`.

        mug.jpg: cup | mug | coffee mug
        street.jpg: bicycle | bike, dog

    Things are apart by commas. Writes rows {`image`, `text` (the first word of each thing), `nouns` [[synonyms]…]}, in
    the order of the list. Raises InputError for a line that says nothing or names a file that is not there.
    """
    target, source = Path(out), Path(photos)
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, line in enumerate(Path(listed).read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        rows.append(_row(line, f"{listed} line {number}", source, target))
    (target / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return target


def _row(line: str, where: str, source: Path, target: Path) -> dict[str, Any]:
    name, colon, said = line.partition(":")
    name = name.strip()
    things = [[word.strip() for word in thing.split("|") if word.strip()] for thing in said.split(",")]
    if not colon or not all(things):
        raise InputError(f"{where} says nothing of a photograph", hint="such as mug.jpg: cup | mug")
    path = source / name
    if not path.resolve().is_relative_to(source.resolve()) or not path.is_file():
        raise InputError(f"{where} names {name}, which is not in {source}", hint="mend the line, or add the file")
    to_rgb(path)
    (target / path.name).write_bytes(path.read_bytes())
    return {"image": path.name, "text": _text(things), "nouns": things, "task": "caption"}


def _text(things: Sequence[Sequence[str]]) -> str:
    return ", ".join(synonyms[0] for synonyms in things)
