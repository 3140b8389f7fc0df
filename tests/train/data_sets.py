"""Small data sets that a tiny model can learn by heart."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

RATE_HZ = 16_000
COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
TONES_HZ = {"low": 220.0, "high": 880.0}


def write_rows(place: Path, rows: list[dict]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def colours(place: Path, n: int = 12, size: int = 64) -> Path:
    """Plain pictures with label, text, question and answer, and one box that is the square in them."""
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        name = list(COLOURS)[i % len(COLOURS)]
        image = rng.integers(90, 110, (size, size, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(4, size // 2, 2))
        side = size // 3
        image[y : y + side, x : x + side] = COLOURS[name]
        cv2.imwrite(str(place / f"{i}.png"), image[..., ::-1])
        rows.append(
            {
                "image": f"{i}.png",
                "label": name,
                "text": f"a {name} door",
                "question": "what is in the picture?",
                "answer": name,
                "objects": {"bbox": [[x, y, side, side]], "category": [name]},
            }
        )
    return write_rows(place, rows)


def tones(place: Path, n: int = 8) -> Path:
    """Sounds of a second with a label and a text."""
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        name = list(TONES_HZ)[i % len(TONES_HZ)]
        t = np.arange(RATE_HZ) / RATE_HZ
        wave = 0.3 * np.sin(2 * np.pi * TONES_HZ[name] * t) + 0.01 * rng.standard_normal(RATE_HZ)
        soundfile.write(place / f"{i}.wav", wave.astype(np.float32), RATE_HZ)
        rows.append({"audio": f"{i}.wav", "label": name, "text": f"the {name} light is on"})
    return write_rows(place, rows)


def couples(place: Path) -> Path:
    """Pairs of texts."""
    things = ["a red car", "the kitchen", "two people", "a green light", "the window", "seven robots"]
    return write_rows(place, [{"user": f"where is {t}?", "item": t, "score": 1.0} for t in things])


def clips(place: Path, n: int = 8, frames: int = 6) -> Path:
    """Videos of one colour each."""
    place.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        name = list(COLOURS)[i % len(COLOURS)]
        with av.open(place / f"{i}.mp4", "w") as file:
            stream = file.add_stream("libx264", rate=4)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(frames):
                picture = np.full((64, 64, 3), COLOURS[name], np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
        rows.append({"video": f"{i}.mp4", "label": name})
    return write_rows(place, rows)
