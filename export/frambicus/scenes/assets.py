"""Sprites with names, and photographs: what scenes are composed of, in a folder."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.export.frambicus.scenes.config import ScenesConfig

Rgba = NDArray[np.uint8]
SPRITES = "sprites.json"
_OPAQUE = 128


@dataclass(frozen=True)
class Sprite:
    """One drawing of a concept: `noun` is what captions call it, `tags` what else is said of it.

    `code` is its code point in hexadecimal; `directed` forbids to mirror it (it has letters, or points somewhere).
    """

    code: str
    noun: str
    path: Path
    tags: tuple[str, ...] = ()
    directed: bool = False

    def picture(self) -> Rgba:
        """uint8 [h, w, 4], cut to what is opaque. Raises SourceError for a file that is no picture."""
        return _read(self.path)


@lru_cache(maxsize=4096)
def _read(path: Path) -> Rgba:
    import cv2

    found = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or found.shape[2] != 4:
        raise SourceError(f"{path} is no picture with transparency", hint="make the assets again")
    solid = found[:, :, 3] >= _OPAQUE
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    cut = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.ascontiguousarray(cut[:, :, [2, 1, 0, 3]])


@dataclass(frozen=True)
class Assets:
    """All sprites and the photographs that may be a background."""

    sprites: tuple[Sprite, ...]
    photos: tuple[Path, ...] = ()

    def pool(self, config: ScenesConfig, split: str) -> dict[str, list[Sprite]]:
        """Noun → its sprites, of the concepts that a split may show.

        A concept's sprites are held out together, by the hash of the lowest code point: otherwise a dog that was held
        out would be known from the face of a dog.
        """
        nouns: dict[str, list[Sprite]] = defaultdict(list)
        for sprite in sorted(self.sprites, key=lambda s: s.code):
            nouns[sprite.noun].append(sprite)
        unseen = split == "unseen"
        return {n: s for n, s in sorted(nouns.items()) if config.is_held_out(s[0].code) == unseen}

    def backgrounds(self, config: ScenesConfig, split: str) -> list[Path]:
        """The photographs that a split may show: those that are not held out for training and validation."""
        known = split in ("train", "validation")
        return [p for p in sorted(self.photos) if config.is_held_out(p.name) != known]


def textures(config: ScenesConfig, split: str) -> list[str]:
    """The painted backgrounds that a split may show."""
    known = split in ("train", "validation")
    return [t for t in config.textures if (t in config.held_out_textures) != known]


def load_assets(folder: str | Path) -> Assets:
    """Read what `samples/recipes/frambicus_assets.py` wrote: `sprites.json` and the folders it names.

    Raises SourceError where there are no assets, or a file is missing.
    """
    root = Path(folder)
    if not (root / SPRITES).is_file():
        raise SourceError(
            f"{root} has no {SPRITES}", hint=f"run: python samples/recipes/frambicus_assets.py --out {root}"
        )
    found = json.loads((root / SPRITES).read_text("utf-8"))
    sprites = tuple(
        Sprite(
            code=entry["code"],
            noun=entry["noun"],
            path=root / entry["file"],
            tags=tuple(entry.get("tags", ())),
            directed=bool(entry.get("directed", False)),
        )
        for entry in found["sprites"]
    )
    absent = [s.path for s in sprites if not s.path.is_file()]
    if absent:
        raise SourceError(f"{absent[0]} is missing, and {len(absent) - 1} more", hint="make the assets again")
    return Assets(sprites, tuple(sorted(root / name for name in found.get("photos", ()))))
