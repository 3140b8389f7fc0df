"""Where calibration examples come from: files, folders, data sets with metadata.jsonl, videos and MCAP recordings.

Read as a stream: of a long recording no more is held than what is kept of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Wish
from edgemm.live.sources.recording import RecordedAudio, RecordedVideo
from edgemm.processing.audio import to_mono_16k
from edgemm.processing.media import check_file, read_head, sniff
from edgemm.tasks.metadata import METADATA, lines_of, media_of

_NO_MEDIA = (".md", ".txt", ".json", ".jsonl", ".py", ".toml", "")
_MCAP = b"\x89MCAP"
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A file to calibrate on, and what is asked about it, where the data set says so."""

    path: Path
    question: str | None = None


def kind_of(path: Path) -> Literal["image", "audio", "video", "recording"]:
    """What a file holds. Raises SourceError for what is none of them."""
    return "recording" if read_head(check_file(path)).startswith(_MCAP) else sniff(path)


def files(paths: Sequence[Path]) -> Iterator[Found]:
    """The files that `paths` mean: themselves, the rows of a data set, or what a folder holds.

    Raises InputError that names the line of a torn or useless row.
    """
    for path in paths:
        if (path / METADATA).is_file():
            yield from _rows(path)
        elif path.is_dir():
            yield from (Found(p) for p in sorted(path.rglob("*")) if p.is_file() and _usable(p))
        else:
            yield Found(path)


def _usable(path: Path) -> bool:
    if path.suffix.lower() in _NO_MEDIA:
        return False
    try:
        kind_of(path)
    except SourceError:
        return False
    return True


def _rows(data: Path) -> Iterator[Found]:
    """The files of a data set, each once; rows of texts only have none."""
    seen: set[Path] = set()
    for values, where in lines_of(data):
        for _, path in media_of(data, values, where)[:1]:
            if path not in seen:
                seen.add(path)
                question = values.get("question")
                yield Found(path, question if isinstance(question, str) else None)


def spread(items: Iterable[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly over them; never more than twice as many are held."""
    kept: list[T] = []
    step = 1
    for number, item in enumerate(items):
        if number % step:
            continue
        kept.append(item)
        if len(kept) == 2 * most:
            kept, step = kept[::2], 2 * step
    return kept[:: max(1, len(kept) // most)][:most]


def recorded_pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The pictures, uint8 [H, W, 3] RGB, of a recording's first camera; none where it has none."""
    reader = RecordedVideo(str(path), Wish())
    try:
        reader.open()
    except SourceError:
        return
    while (picture := reader.read()) is not None:
        yield picture[0]


def recorded_sound(path: Path, stretch_s: float, rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """The sound of a recording's first microphone in stretches, float32 [samples] at `rate_hz`; the last is shorter."""
    reader = RecordedAudio(str(path))
    try:
        reader.open()
    except SourceError:
        return
    blocks: list[NDArray[np.float32]] = []
    rate = held = 0
    while (sound := reader.read()) is not None:
        blocks.append(sound.samples)
        rate, held = sound.rate_hz, held + len(sound.samples)
        size = round(stretch_s * rate)
        while held >= size:
            joined = np.concatenate(blocks)
            yield to_mono_16k(joined[:size], rate, rate_hz)
            blocks, held = [joined[size:]], held - size
    if held:
        yield to_mono_16k(np.concatenate(blocks), rate, rate_hz)
