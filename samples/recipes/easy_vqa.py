"""easy-VQA as data sets: 4,000 and 1,000 pictures of one shape, 38,575 and 9,673 questions with 13 answers.

    python samples/recipes/easy_vqa.py --out easy-vqa

Needs pip alone, to fetch the wheel (MIT). Writes `train/` and `test/`, each with `metadata.jsonl` and pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

from wheels import RecipeError, Wheel, fetch

WHEEL = Wheel("easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", "MIT")
SPLITS = {"train": 38_575, "test": 9_673}
METADATA = "metadata.jsonl"


def build(out: Path, cache: Path) -> dict[str, int]:
    """Write both splits; returns their numbers of questions. Raises RecipeError when the wheel is another one."""
    with zipfile.ZipFile(fetch(WHEEL, cache)) as archive:
        counts = {split: _split(archive, split, out / split) for split in SPLITS}
    if counts != SPLITS:
        raise RecipeError(f"{WHEEL.requirement} has {counts} questions: {SPLITS} were expected")
    return counts


def _split(archive: zipfile.ZipFile, split: str, folder: Path) -> int:
    root = f"easy_vqa/data/{split}"
    asked = json.loads(archive.read(f"{root}/questions.json"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in sorted({image for _, _, image in asked}):
        (folder / f"images/{image}.png").write_bytes(archive.read(f"{root}/images/{image}.png"))
    rows = [
        {"image": f"images/{image}.png", "question": question, "answer": answer, "task": "answer"}
        for question, answer, image in asked
    ]
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="wheels go here")
    options = parser.parse_args()
    try:
        counts = build(options.out, options.cache)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(", ".join(f"{count} questions in {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
