"""Examples from real files: what activation ranges and task checks are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError, SourceError
from edgemm.export.model_plan import Example
from edgemm.export.precision.calibration_sources import files, kind_of, recorded_pictures, recorded_sound, spread
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video

RATE_HZ = 16_000
_SPEECH_S = 6.0
_FRAMES_PER_VIDEO = 48
_NOISE_SNR_DB = 15.0
_VARIANTS = 3  # of every stretch of sound


def load_examples(paths: Sequence[Path], *, limit: int = 256) -> list[Example]:
    """Examples from files, folders and data sets: pictures, sound in stretches of 6 s, both from videos and recordings.

    At most `limit` of pictures and of sounds; a data set's question goes with its file. Every stretch of sound also
    comes quieter and with seeded noise, since microphones differ more than recordings. Raises SourceError for a path
    that is missing or holds nothing usable, InputError for a torn row.
    """
    pictures: list[Example] = []
    sounds: list[Example] = []
    for found in files(paths):
        kind = kind_of(found.path)
        asked = found.question or Example.question
        if kind != "audio" and len(pictures) < limit:
            pictures += [Example(image=p, question=asked) for p in _pictures(found.path, kind)]
        if kind != "image" and len(sounds) < limit:
            sounds += [
                Example(audio=v, question=asked) for s in _sounds(found.path, kind, limit) for v in (s, *_disturbed(s))
            ]
    if not pictures and not sounds:
        raise SourceError(f"no picture or sound in {', '.join(map(str, paths))}")
    return pictures[:limit] + sounds[:limit]


def _pictures(path: Path, kind: str) -> list[NDArray[np.uint8]]:
    if kind == "image":
        return [to_rgb(path)]
    frames = recorded_pictures(path) if kind == "recording" else (frame.image for frame in iter_video(path))
    return spread(frames, _FRAMES_PER_VIDEO)


def _sounds(path: Path, kind: str, limit: int) -> list[NDArray[np.float32]]:
    if kind == "recording":
        stretches = recorded_sound(path, _SPEECH_S, RATE_HZ)
        return spread((s for s in stretches if len(s) >= RATE_HZ), max(1, limit // _VARIANTS))
    return _stretches(path, required=kind == "audio")


def _stretches(path: Path, *, required: bool) -> list[NDArray[np.float32]]:
    try:
        samples, rate = load_audio(path)
    except (SourceError, InputError):
        if required:
            raise
        return []
    mono = to_mono_16k(samples, rate, RATE_HZ)
    size = int(_SPEECH_S * RATE_HZ)
    stretches = [mono[i : i + size] for i in range(0, len(mono), size)]
    return [s for s in stretches if len(s) >= RATE_HZ]


def _disturbed(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    noise = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    power = float(np.sqrt(np.mean(samples**2))) * 10 ** (-_NOISE_SNR_DB / 20)
    return (samples * 0.25).astype(np.float32), (samples + noise * power).astype(np.float32)


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 over the raw examples, in order."""
    sha = hashlib.sha256()
    for example in examples:
        for array in (example.image, example.audio):
            if array is not None:
                sha.update(np.ascontiguousarray(array).tobytes())
        sha.update(example.question.encode())
    return sha.hexdigest()


def synthetic_examples() -> list[Example]:
    """Seeded pictures and sounds, for comparing with the original where no data was given. Never for calibration."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    picture = np.kron(small, np.ones((20, 20, 1), np.uint8))
    t = np.arange(2 * RATE_HZ) / RATE_HZ
    sound = 0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.3 * np.sin(t))) * (np.sin(2 * np.pi * 3 * t) > 0)
    return [
        # Strips are few tiles for the models that cut a picture up.
        Example(image=np.ascontiguousarray(picture[:80])),
        Example(image=np.ascontiguousarray(picture[::-1, :-61:-1])),
        Example(audio=sound.astype(np.float32)),
        Example(audio=(0.1 * rng.standard_normal(RATE_HZ)).astype(np.float32)),
    ]
