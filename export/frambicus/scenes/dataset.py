"""Scenes as data sets on the disk: `metadata.jsonl` and files, a folder a split."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import StorageError
from edgemm.export.frambicus.scenes.assets import Assets
from edgemm.export.frambicus.scenes.backgrounds import Rgb, background
from edgemm.export.frambicus.scenes.captions import caption
from edgemm.export.frambicus.scenes.compose import Thing, compose, drop
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.export.frambicus.scenes.motion import Clip, film
from edgemm.export.frambicus.scenes.questions import questions
from edgemm.export.frambicus.scenes.speech import RATE_HZ, speak
from edgemm.processing.audio import Samples

METADATA = "metadata.jsonl"
CONFIG = "scenes.json"
Row = dict[str, Any]
Make = Callable[[str, Path, int], list[Row]]
_AT_ONCE = 64  # examples a worker makes before it asks for more


def write_scenes(
    out: Path | str, assets: Assets, config: ScenesConfig, counts: Mapping[str, int], workers: int = 1
) -> Path:
    """Composed pictures: a row with `text` and `objects` for each, and a row for each question about it.

    `counts` is how many pictures each split has; as many `workers` make them side by side, and the files are the same
    with any number. Files that are there are replaced. Raises UsageError for a split that there is not, StorageError
    where a picture cannot be written.
    """
    return _write(out, config, counts, partial(_pictured, config, assets), workers)


def write_clips(
    out: Path | str, assets: Assets, config: ScenesConfig, counts: Mapping[str, int], workers: int = 1
) -> Path:
    """Motion clips: a row with `video`, `text` and when it happens. As `write_scenes`."""
    return _write(out, config, counts, partial(_filmed, config, assets), workers)


def write_catalogue(
    out: Path | str, assets: Assets, config: ScenesConfig, splits: Iterable[str] = ("unseen",), *, each: int = 1
) -> Path:
    """For recommendation: every sprite of a split alone on `each` backgrounds, `text` its noun and tags."""
    pools = {split: [s for group in assets.pool(config, split).values() for s in group] for split in splits}
    counts = {split: len(sprites) * each for split, sprites in pools.items()}

    def row(split: str, folder: Path, i: int) -> list[Row]:
        again, place = divmod(i, len(pools[split]))
        sprite, rng = pools[split][place], config.rng(split, "catalogue", i)
        picture = background(config, assets, split, rng)
        drop(sprite, config.area[1], config, rng).paint(picture)
        name = save_picture(folder, f"item-{sprite.code}{f'-{again}' if again else ''}", picture, config)
        said = dict.fromkeys((sprite.noun, *sprite.tags))
        return [{"image": name, "text": ", ".join(said), "item": sprite.code, "task": "recommend"}]

    return _write(out, config, counts, row)


def write_spoken(out: Path | str, data: Path | str, config: ScenesConfig, *, limit: int | None = None) -> Path:
    """The questions of a data set's folder (one split), spoken: `audio` beside `question`. Pictures are copied.

    Raises SourceError where flite is missing.
    """
    source, target = Path(data), Path(out)
    target.mkdir(parents=True, exist_ok=True)
    lines = (source / METADATA).read_text("utf-8").splitlines()
    asked = [row for row in map(json.loads, lines) if row.get("question")][:limit]
    split = source.name if source.name in ("train", "validation", "test", "unseen") else "test"
    rows = []
    for i, row in enumerate(asked):
        name = f"question-{i:06d}.wav"
        _save_sound(target / name, speak(row["question"], config, config.rng(split, "spoken", i)))
        picture = _copied(source / row["image"], target)
        rows.append(row | {"image": picture, "audio": name})
    _save_rows(target, rows)
    return target


def _write(out: Path | str, config: ScenesConfig, counts: Mapping[str, int], make: Make, workers: int = 1) -> Path:
    root = Path(out)
    for split, count in counts.items():
        config.rng(split, "", 0)
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        one = partial(make, split, folder)
        if workers == 1:
            _save_rows(folder, (row for i in range(count) for row in one(i)))
            continue
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            _save_rows(folder, (row for rows in pool.map(one, range(count), chunksize=_AT_ONCE) for row in rows))
    described = asdict(config) | {"sha256": config.sha256, "counts": dict(counts)}
    (root / CONFIG).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return root


def _save_rows(folder: Path, rows: Iterable[Row]) -> None:
    partial = folder / f"{METADATA}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(folder / METADATA)


def _pictured(config: ScenesConfig, assets: Assets, split: str, folder: Path, index: int) -> list[Row]:
    scene = compose(config, assets, split, index)
    name = save_picture(folder, f"scene-{index:06d}", scene.picture, config)
    shown = {"image": name, "text": caption(scene), "objects": objects(scene.things), "task": "caption"}
    asked = questions(scene, config.rng(split, "questions", index))
    return [shown, *({"image": name, **asdict(a), "task": "answer"} for a in asked)]


def objects(things: Iterable[Thing]) -> dict[str, Any]:
    """`bbox` (x, y, width, height in pixels) and `category` of what is seen."""
    found = list(things)
    boxes = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in (t.box_px for t in found)]
    return {"bbox": [list(box) for box in boxes], "category": [t.noun for t in found]}


def _filmed(config: ScenesConfig, assets: Assets, split: str, folder: Path, index: int) -> list[Row]:
    clip = film(config, assets, split, index)
    name = f"clip-{index:06d}.mp4"
    _save_video(folder / name, clip)
    row = {
        "video": name,
        "text": clip.text,
        "frame_times_s": list(clip.times_s),
        "t_start_s": clip.start_s,
        "t_end_s": clip.end_s,
        "happening": clip.happening,
        "task": "describe",
    }
    return [row]


def save_picture(folder: Path, stem: str, picture: Rgb, config: ScenesConfig) -> str:
    """Write uint8 [h, w, 3] RGB as JPEG; returns the file's name. Raises StorageError where it cannot be written."""
    import cv2

    name = f"{stem}.jpg"
    bgr = np.ascontiguousarray(picture[:, :, ::-1])
    if not cv2.imwrite(str(folder / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]):
        raise StorageError(f"{folder / name} could not be written", hint="is the disk full?")
    return name


def _save_video(path: Path, clip: Clip) -> None:
    """H.264 with one thread, so that the same libraries give the same file."""
    import av

    rate = Fraction(1 / clip.times_s[1]).limit_denominator(1000)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = clip.frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "threads": "1"}
        for picture in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _save_sound(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())


def _copied(picture: Path, target: Path) -> str:
    copy = target / picture.name
    if not copy.exists():
        copy.write_bytes(picture.read_bytes())
    return picture.name
