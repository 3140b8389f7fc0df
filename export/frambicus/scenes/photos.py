"""Real photographs as data sets: with a list of what is in them, for evaluation, and in pieces, for training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemm.errors import InputError
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.export.frambicus.scenes.dataset import METADATA, save_picture
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


def write_crops(out: Path | str, photos: Sequence[Path], config: ScenesConfig, each: int, split: str = "train") -> Path:
    """Squares cut at random out of real photographs, `each` of every one: rows {`image`, `objects` (none), `photo`}.

    No sprite is in them: they teach the detector what is nothing, and are named by what the vision tower sees.
    """
    import cv2

    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in photos:
        picture = to_rgb(path)
        for i in range(each):
            rng = config.rng(split, f"crop {path.name}", i)
            side = int(min(picture.shape[:2]) * rng.uniform(0.5, 1.0))
            top, left = (int(rng.integers(edge - side + 1)) for edge in picture.shape[:2])
            cut = picture[top : top + side, left : left + side][:, :: rng.choice((1, -1))]
            name = save_picture(
                target, f"{path.stem}-{i}", cv2.resize(cut, (config.size_px,) * 2, interpolation=cv2.INTER_AREA), config
            )
            rows.append({"image": name, "objects": {"bbox": [], "category": []}, "photo": path.name})
    (target / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return target
