"""Recordings as training data: what a run heard and said of what it saw becomes rows.

`edgemm run --record x.mcap` keeps frames, sound and events. A final transcript is a row with the sound that it covers,
a caption or an answer one with the frame that it was said about. The recording is read as a stream, once each for the
events, the sound and the pictures; files and lines go into the cache, as a data set that is read like any other.
"""

from __future__ import annotations

import hashlib
import json
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.files import cache_dir
from edgemm.bundle.writing import writing
from edgemm.errors import SourceError
from edgemm.live.foxglove import AUDIO
from edgemm.live.mcap_file import EVENT, PICTURES, encode_jpeg, read_messages
from edgemm.live.sources.base import Wish
from edgemm.live.sources.recording import RecordedAudio, RecordedVideo
from edgemm.tasks.metadata import METADATA

EVENTS = ("transcript", "caption", "answer")
"""The events that teach."""

_VERSION = "1"
_LEAST_S = 0.1  # of sound
_LATE_S = 0.5  # how far a frame may be from the moment that its caption is of


@dataclass
class _Stretch:
    """Sound from `start_s` to `end_s`, as it comes together."""

    row: int
    start_s: float
    end_s: float
    blocks: list[NDArray[np.float32]] = field(default_factory=list)
    rate_hz: int = 0


def is_recording(path: Path) -> bool:
    """Whether a path is meant for a recording."""
    return path.suffix.lower() == ".mcap" and path.is_file()


def rows_of(recording: Path, wanted: Sequence[str] = EVENTS) -> Path:
    """A directory with `metadata.jsonl` and the files of the events `wanted` of a recording; kept in the cache.

    Raises SourceError where it is no recording, or none of these events comes with what it was said about.
    """
    state = recording.stat()
    about = [_VERSION, str(recording.resolve()), state.st_size, state.st_mtime_ns, sorted(wanted)]
    place = cache_dir("recordings", hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32])
    if not (place / METADATA).is_file():
        with writing(place, marker=METADATA, what="data set") as partial:
            _write(recording, wanted, partial)
    return place


def _write(recording: Path, wanted: Sequence[str], place: Path) -> None:
    rows = [row for message in read_messages(recording, (EVENT,)) if (row := _row(message.body, wanted)) is not None]
    if not wanted:
        raise SourceError(f"{recording} teaches transcribing, answering and captioning, and not this task")
    if not rows:
        kinds = sorted({str(m.body.get("type")) for m in read_messages(recording, (EVENT,))})
        raise SourceError(
            f"{recording} has no {', '.join(wanted)}: nothing in it says what was heard or seen",
            hint=f"it has {', '.join(kinds)}" if kinds else "record with: edgemm run --record session.mcap",
        )
    _cut_sound(recording, rows, place)
    _pick_frames(recording, rows, place)
    kept = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows if "audio" in row or "image" in row]
    if not kept:
        raise SourceError(
            f"{recording} has {len(rows)} events, and not the sound or the frames that they are about",
            hint="record with the camera and the microphone on",
        )
    (place / METADATA).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _row(event: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any] | None:
    """What an event teaches, with the time that it is about; None for others and for empty ones."""
    kind, text = event.get("type"), str(event.get("text") or "").strip()
    if kind not in wanted or not text:
        return None
    if kind == "transcript":
        heard = (float(event["t_start_s"]), float(event["t_end_s"]))
        return {"text": text, "_heard_s": heard} if event.get("final") else None
    seen_s = float(event["t_capture_s"])
    if kind == "answer":
        return {"question": str(event["question"]), "answer": text, "_seen_s": seen_s}
    return {"text": text, "_seen_s": seen_s}


def _cut_sound(recording: Path, rows: list[dict[str, Any]], place: Path) -> None:
    ahead = sorted(
        (_Stretch(i, *row["_heard_s"]) for i, row in enumerate(rows) if "_heard_s" in row), key=lambda s: s.start_s
    )
    if not ahead or not _has(recording, (AUDIO,)):
        return
    now: list[_Stretch] = []
    for t_s, samples, rate_hz in _sound(recording):
        end_s = t_s + len(samples) / rate_hz
        while ahead and ahead[0].start_s < end_s:
            now.append(ahead.pop(0))
        for stretch in now:
            first, last = (round((s - t_s) * rate_hz) for s in (stretch.start_s, stretch.end_s))
            stretch.blocks.append(samples[max(0, first) : max(0, last)])
            stretch.rate_hz = rate_hz
        for stretch in [s for s in now if s.end_s <= end_s]:
            now.remove(stretch)
            _keep_sound(stretch, rows, place)
    for stretch in now:
        _keep_sound(stretch, rows, place)


def _keep_sound(stretch: _Stretch, rows: list[dict[str, Any]], place: Path) -> None:
    samples = np.concatenate(stretch.blocks)
    if len(samples) < _LEAST_S * stretch.rate_hz:
        return
    name = f"{stretch.row}.wav"
    with wave.open(str(place / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(stretch.rate_hz)
        file.writeframes(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    rows[stretch.row]["audio"] = name


def _pick_frames(recording: Path, rows: list[dict[str, Any]], place: Path) -> None:
    """Give every row the frame that is nearest to its moment."""
    ahead = sorted((row["_seen_s"], i) for i, row in enumerate(rows) if "_seen_s" in row)
    if not ahead or not _has(recording, PICTURES):
        return
    before: tuple[float, NDArray[np.uint8]] | None = None
    for t_s, image in _frames(recording):
        while ahead and ahead[0][0] <= t_s:
            seen_s, row = ahead.pop(0)
            both = [(t_s, image), *([before] if before is not None else [])]
            _keep_frame(min(both, key=lambda f: abs(f[0] - seen_s)), seen_s, row, rows, place)
        before = (t_s, image)
    for seen_s, row in ahead:
        if before is not None:
            _keep_frame(before, seen_s, row, rows, place)


def _keep_frame(
    frame: tuple[float, NDArray[np.uint8]], seen_s: float, row: int, rows: list[dict[str, Any]], place: Path
) -> None:
    if abs(frame[0] - seen_s) <= _LATE_S:
        (place / f"{row}.jpg").write_bytes(encode_jpeg(frame[1]))
        rows[row]["image"] = f"{row}.jpg"


def _has(recording: Path, schemas: tuple[str, ...]) -> bool:
    return next(read_messages(recording, schemas), None) is not None


def _sound(recording: Path) -> Iterator[tuple[float, NDArray[np.float32], int]]:
    reader = RecordedAudio(str(recording))
    reader.open()
    while (sound := reader.read()) is not None:
        assert sound.t_media_s is not None
        yield sound.t_media_s, sound.samples, sound.rate_hz


def _frames(recording: Path) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    reader = RecordedVideo(str(recording), Wish())
    reader.open()
    while (picture := reader.read()) is not None:
        image, t_s = picture[0], picture[1]
        assert t_s is not None
        yield t_s, image
