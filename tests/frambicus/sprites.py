"""Stand-ins for the sprites: drawn shapes with transparency, and two photographs of noise."""

import json

import cv2
import numpy as np

SHAPES = {
    "1f534": ("ball", (230, 40, 40)),
    "1f535": ("ball", (40, 60, 220)),
    "1f7e9": ("box", (40, 170, 60)),
    "2b50": ("star", (250, 220, 40)),
    "1f7eb": ("brick", (110, 70, 40)),
    "1f347": ("grapes", (130, 50, 160)),
    "1f98a": ("fox", (240, 130, 40)),
    "1f427": ("penguin", (20, 20, 20)),
    "1f9ca": ("ice cube", (60, 150, 240)),
    "1f41f": ("fish", (60, 120, 230)),
    "1f95a": ("egg", (245, 245, 245)),
    "1f33b": ("flower", (240, 90, 170)),
}


def _shape(number, colour):
    picture = np.zeros((96, 96, 4), np.uint8)
    points = cv2.ellipse2Poly((48, 48), (40, 14 + 3 * number), 15 * number, 0, 360, 360 // (3 + number))
    cv2.fillPoly(picture, [points], (*colour[::-1], 255))
    return picture


def draw_assets(folder):
    """Write an assets folder as `samples/recipes/frambicus_assets.py` does."""
    (folder / "sprites").mkdir(parents=True)
    (folder / "photos").mkdir()
    entries = []
    for number, (code, (noun, colour)) in enumerate(SHAPES.items()):
        file = f"sprites/{code}.png"
        cv2.imwrite(str(folder / file), _shape(number, colour))
        entries.append({"code": code, "noun": noun, "file": file, "tags": [noun, "shape"]})
    rng = np.random.default_rng(0)
    names = [f"photos/{n}.png" for n in ("meadow", "wall")]
    for name in names:
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    (folder / "sprites.json").write_text(json.dumps({"sprites": entries, "photos": names}))
    return folder
