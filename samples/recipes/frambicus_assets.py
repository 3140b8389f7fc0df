"""What Frambicus's scenes are composed of: named sprites and photographs, from pinned packages.

    python samples/recipes/frambicus_assets.py --out assets

Needs npm and pip, which fetch the packages, and nothing else. The sprites are Microsoft's Fluent emoji, their names and
tags emojibase's (both MIT); the photographs are those of scikit-image that are in the public domain. None of it is kept
in the repository. `edgemm.export.frambicus.scenes` reads the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from checkpoint_files import write_json
from frambicus_names import LETTERED, NOUNS
from tarballs import Tarball, members
from wheels import RecipeError, Wheel, read

SPRITES = Tarball(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
LABELS = Tarball(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
)
PHOTO_WHEEL = Wheel(
    "scikit-image",
    "0.25.2",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
    "CC0-1.0",
    # Any machine takes the same file: only its pictures are read.
    ("--platform", "manylinux_2_17_x86_64", "--python-version", "3.11"),
)
# None shows what a sprite is called. Each is public domain or CC0 by the documentation of skimage.data.
PHOTOS = (
    "astronaut.png", "brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg",
)  # fmt: skip


def build(out: Path, cache: Path) -> dict[str, int]:
    """Write `sprites.json`, `sprites/` and `photos/` to `out`; returns how many there are of each.

    Raises RecipeError when a package cannot be had or is not the one that was pinned, or a name has no drawing.
    """
    emoji = {e["label"]: e for e in _labels(cache)}
    drawings = {Path(name).stem: data for name, data in members(SPRITES, cache) if name.startswith("assets/")}
    sprites = [_sprite(label, noun, emoji, drawings, out) for label, noun in NOUNS.items()]
    for name in PHOTOS:
        _write(out / "photos" / name, read(PHOTO_WHEEL, cache, f"skimage/data/{name}"))
    photos = [f"photos/{name}" for name in PHOTOS]
    write_json(out / "sprites.json", {"sprites": sorted(sprites, key=lambda s: s["code"]), "photos": photos})
    return {"sprites": len(sprites), "nouns": len(set(NOUNS.values())), "photos": len(photos)}


def _labels(cache: Path) -> Any:
    return next(json.loads(data) for name, data in members(LABELS, cache) if name == "en/data.json")


def _sprite(label: str, noun: str, emoji: dict[str, Any], drawings: dict[str, bytes], out: Path) -> dict[str, Any]:
    if label not in emoji:
        raise RecipeError(f"{LABELS.requirement} has no {label}")
    code = str(emoji[label]["hexcode"]).lower()
    data = drawings.get(code) or drawings.get(f"{code}-fe0f")
    if data is None:
        raise RecipeError(f"{SPRITES.requirement} has no drawing of {label} ({code})")
    file = f"sprites/{code}.webp"
    _write(out / file, data)
    entry = {"code": code, "noun": noun, "file": file, "tags": emoji[label].get("tags", [])}
    return entry | ({"directed": True} if noun in LETTERED else {})


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of assets")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="packages go here")
    options = parser.parse_args()
    try:
        counts = build(options.out, options.cache)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
