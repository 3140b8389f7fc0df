"""The data that Frambicus is trained on and judged by.

    python samples/recipes/frambicus_data.py --out data

Makes scenes, motion clips, a catalogue and easy-VQA, pieces of photographs, spoken questions, and of these the
mixture that `frambicus.py` trains on. Needs `edgemm[train]`, flite, and what the recipes of the
parts need. The generator's constants and seed are `edgemm.export.frambicus.scenes.ScenesConfig`: every picture is the
same wherever it is made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import easy_vqa
import frambicus_assets
import numpy as np
import photos
import torch
from wheels import RecipeError

from edgemm.export.frambicus import FrambicusForSpeechRecognition, FrambicusModel, processor_of
from edgemm.export.frambicus.building import spoken_name
from edgemm.export.frambicus.scenes import (
    ScenesConfig,
    load_assets,
    write_catalogue,
    write_clips,
    write_scenes,
    write_spoken,
)
from edgemm.export.frambicus.scenes.assets import Sprite
from edgemm.export.frambicus.scenes.compose import Scene, Thing
from edgemm.export.frambicus.scenes.photos import write_crops
from edgemm.export.frambicus.scenes.questions import questions
from edgemm.export.frambicus.scenes.speech import speak
from edgemm.export.frambicus.scenes.words import article
from edgemm.processing.memory import plain_question

SCENES = {"train": 24_000, "validation": 400, "test": 2_000, "unseen": 1_000}
CLIPS = {"train": 4_000, "validation": 100, "test": 500}
SPOKEN, CATALOGUE = 200, 8
SAID, MISHEARD = 15, 0.3  # how often each of easy-VQA's questions is said to be misheard, share of rows that have it so
ALIKE, CROPS = 12, 10  # photographs of one series, pieces of one photograph
MORE = ("what", "count", "relation", "where")
SURE = 0.3  # from here on the vision tower's best class names a piece of a photograph
_BATCH = 16

Row = dict[str, Any]


def build(out: Path, cache: Path, workers: int) -> dict[str, int]:
    """Write all data sets to `out`; returns how many rows the mixture's splits have."""
    frambicus_assets.build(out / "assets", cache)
    easy_vqa.build(out / "easy-vqa", cache)
    photos.build(out / "photos", cache, "test")
    photos.build(out / "photos-train", cache, "train")
    assets, config = load_assets(out / "assets"), ScenesConfig()
    write_scenes(out / "scenes", assets, config, SCENES, workers)
    write_clips(out / "clips", assets, config, CLIPS, workers)
    write_catalogue(out / "catalogue", assets, config, ("train",), each=CATALOGUE)
    write_catalogue(out / "catalogue", assets, config, ("unseen",))
    write_crops(out / "crops/train", _varied(out / "photos-train"), config, CROPS)
    _spoken(out, config)
    mixture = {
        "train": [
            *_scenes(out, "train"),
            *_more(out, config),
            *_clips(out, "train"),
            *_misheard([*_asked(out, "train")], config),
            *_named(out),
            *_pairs(out),
        ],
        "validation": _some([*_scenes(out, "validation"), *_clips(out, "validation"), *_asked(out, "test")], 240),
        "test": _some([*_scenes(out, "test"), *_clips(out, "test"), *_asked(out, "test")], 160),
    }
    for split, rows in mixture.items():
        _write(out / "mixture" / split, rows)
    return {split: len(rows) for split, rows in mixture.items()}


def _varied(folder: Path) -> list[Path]:
    """The photographs, at most `ALIKE` of those whose names begin alike."""
    counts: Counter[str] = Counter()
    kept = []
    for path in sorted(p for p in folder.iterdir() if p.suffix != ".txt"):
        series = re.split(r"[-_0-9]", path.stem)[0]
        counts[series] += 1
        if counts[series] <= ALIKE:
            kept.append(path)
    return kept


def _spoken(out: Path, config: ScenesConfig) -> None:
    """Questions of easy-VQA's test, evenly chosen, spoken."""
    rows = _rows(out / "easy-vqa/test")
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, SPOKEN).astype(int)]
    source = out / "easy-vqa/spoken-source"
    _write(source, [row | {"image": f"../test/{row['image']}"} for row in chosen])
    write_spoken(out / "easy-vqa/spoken", source, config)


def _rows(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def _write(folder: Path, rows: Iterable[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _moved(row: Row, source: str, split: str) -> Row:
    """A row whose media are found from the folder of a mixture's split."""
    return row | {k: f"../../{source}/{split}/{row[k]}" for k in ("image", "video") if k in row}


def _scenes(out: Path, split: str) -> Iterable[Row]:
    kept = ("image", "text", "objects", "question", "answer")
    return [_moved({k: r[k] for k in kept if k in r}, "scenes", split) for r in _rows(out / "scenes" / split)]


def _more(out: Path, config: ScenesConfig) -> Iterable[Row]:
    """More questions about the training scenes, from what was noted of their objects: all that is no look."""
    nouns, asked = tuple(load_assets(out / "assets").pool(config, "train")), set()
    blank, margin_px = np.zeros((config.size_px, config.size_px, 3), np.uint8), config.margin * config.size_px
    for row in _rows(out / "scenes/train"):
        asked.add((row["image"], row.get("question")))
    for index, row in enumerate(r for r in _rows(out / "scenes/train") if "objects" in r):
        objects = row["objects"]
        things = [
            Thing(Sprite("", noun, Path()), (x, y, x + w, y + h), 1.0, None)
            for noun, (x, y, w, h) in zip(objects["category"], objects["bbox"], strict=True)
        ]
        scene = Scene(blank, tuple(things), nouns, margin_px)
        for more in questions(scene, config.rng("train", "more questions", index), each=2):
            if more.kind in MORE and (row["image"], more.question) not in asked:
                own = {"image": row["image"], "question": more.question, "answer": more.answer}
                yield _moved(own, "scenes", "train")


def _clips(out: Path, split: str) -> Iterable[Row]:
    return [_moved({"video": r["video"], "text": r["text"]}, "clips", split) for r in _rows(out / "clips" / split)]


def _asked(out: Path, split: str) -> Iterable[Row]:
    kept = ("image", "question", "answer")
    return [_moved({k: r[k] for k in kept}, "easy-vqa", split) for r in _rows(out / "easy-vqa" / split)]


def _misheard(rows: Sequence[Row], config: ScenesConfig) -> Iterable[Row]:
    """Questions of which some stand as the speech model heard them, said aloud in a room with noise."""
    model, processor = FrambicusForSpeechRecognition.from_towers(), processor_of()
    heard: dict[str, list[str]] = {}
    for i, question in enumerate(sorted({row["question"] for row in rows})):
        sounds = [speak(question, config, config.rng("train", "misheard", i * SAID + n)) for n in range(SAID)]
        for sound in sounds:
            ids = model.generate(processor.listen([sound])["input_values"])
            text = plain_question(processor.batch_decode(ids, skip_special_tokens=True)[0])
            heard.setdefault(question, []).append(text)
    rng = config.rng("train", "misheard", -1)
    for row in rows:
        instead = heard[row["question"]][rng.integers(SAID)] if rng.random() < MISHEARD else ""
        yield row | {"question": instead or row["question"]}


def _named(out: Path) -> Iterable[Row]:
    """Pieces of photographs: where the thing is, what the tower takes it for, and itself to be named as anything."""
    pieces = _rows(out / "crops/train")
    yield from (_moved(row, "crops", "train") for row in pieces)
    model, processor = FrambicusModel.from_towers(), processor_of()
    labels = [str(model.config.vision_config.id2label[i]) for i in range(len(model.config.vision_config.id2label))]
    for start in range(0, len(pieces), _BATCH):
        part = pieces[start : start + _BATCH]
        looked = processor.look([str(out / "crops/train" / row["image"]) for row in part])["pixel_values"][:, 0]
        with torch.no_grad():
            logits = model.vision.classifier(model.vision.grids(looked)[-1].mean((2, 3)))
        best = logits.softmax(-1).max(-1)
        for row, score, label in zip(part, best.values.tolist(), best.indices.tolist(), strict=True):
            if score >= SURE:
                text = article(spoken_name(labels[label]))
                yield _moved({"image": row["image"], "text": text}, "crops", "train")
    yield from (_moved({"image": row["image"], "task": "name"}, "crops", "train") for row in pieces)


def _pairs(out: Path) -> Iterable[Row]:
    """Pictures with what is said of them, to tell apart: every other scene, and the catalogue."""
    told = [{k: row[k] for k in ("image", "text")} for row in _scenes(out, "train") if "text" in row][::2]
    items = [
        _moved({"image": r["image"], "text": r["text"]}, "catalogue", "train") for r in _rows(out / "catalogue/train")
    ]
    return [row | {"task": "recommend"} for row in [*told, *items]]


def _some(rows: list[Row], count: int) -> list[Row]:
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))[:count]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="packages go here")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args()
    try:
        counts = build(options.out, options.cache, options.workers)
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(", ".join(f"{count} rows of {split}" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
