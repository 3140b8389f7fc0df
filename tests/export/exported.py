"""The tiny checkpoints and their bundles, each built once for all tests of a run."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

from edgemm.bundle.manifest import Precision
from edgemm.bundle.opening import open_bundle
from edgemm.export import families
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.pipeline import ExportReport, export
from edgemm.model import Model
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions
from tests import checkpoints
from tests.tiny.registry import Tiny, all_tiny

RATE_HZ = 16_000
EXACT = SessionOptions(exact=True)
RUNTIMES = tuple(name for name, it in registry.RUNTIMES.items() if not it.needs_gpu)


_SPEECH = ("audio_encoder", "decoder", "embed_tokens")
_VISION = ("vision_encoder", "decoder", "embed_tokens")
TINY: dict[str, Tiny] = {
    "moonshine": Tiny(checkpoints.moonshine, _SPEECH),
    "whisper": Tiny(checkpoints.whisper, _SPEECH),
    "whisper_en": Tiny(partial(checkpoints.whisper, multilingual=False), _SPEECH),
    "smolvlm": Tiny(checkpoints.smolvlm, _VISION),
    "smolvlm_tied": Tiny(partial(checkpoints.smolvlm, tied=True), _VISION),
    "efficientnet": Tiny(checkpoints.efficientnet_lite0, ("model",)),
}
# The families of tests/tiny, one checkpoint or more each.
FAMILIES: dict[str, Tiny] = all_tiny()


@cache
def place() -> Path:
    """A directory that goes with the process."""
    root = Path(tempfile.mkdtemp(prefix="edgemm-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def checkpoint(name: str) -> Path:
    """The directory of a tiny checkpoint. Read only."""
    return (TINY | FAMILIES)[name].build(place() / name)


def exported(name: str, precision: Precision = "fp32") -> ExportReport:
    """The bundle of a tiny checkpoint. Read only."""
    return _exported(name, precision)


@cache
def _exported(name: str, precision: Precision) -> ExportReport:
    data = () if precision == "fp32" else (calibration_folder(),)
    return export(checkpoint(name), place() / f"{name}-{precision}", precision=precision, calibrate_on=data)


@cache
def plan(name: str) -> ModelPlan:
    """What the family says of a tiny checkpoint."""
    found = find_checkpoint(checkpoint(name))
    return families.find(found.model_type).plan(found)


def model(name: str, runtime: str, precision: Precision = "fp32") -> Model:
    """The tasks of a tiny bundle on one runtime, with exact numbers."""
    return Model(open_bundle(exported(name, precision).bundle), runtime=runtime, options=EXACT)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Coloured waves with noise."""
    rng = np.random.default_rng(seed * 1_000_003 + height * 1009 + width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = rng.uniform(0, 6, 3)
    waves = [np.sin(x / (5 + 4 * c) + y / (9 + 2 * c) + phase[c]) for c in range(3)]
    noisy = np.stack(waves, -1) * 100 + 128 + rng.normal(0, 8, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def sound(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Syllables of changing pitch and colour with pauses between them: no two seconds are alike."""
    rng = np.random.default_rng(seed)
    total = round(seconds * RATE_HZ)
    out = 0.003 * rng.standard_normal(total)
    at = 0
    while at < total:
        length = int(rng.uniform(0.08, 0.4) * RATE_HZ)
        t = np.arange(min(length, total - at)) / RATE_HZ
        pitch = rng.uniform(90, 260)
        voice = sum(rng.uniform(0, 1) / k * np.sin(2 * np.pi * pitch * k * t * (1 + 0.2 * t)) for k in range(1, 12))
        hiss = rng.standard_normal(len(t)) * rng.uniform(0, 0.4)
        out[at : at + len(t)] += rng.uniform(0.05, 0.3) * np.hanning(len(t)) * (voice + hiss)
        at += length + int(rng.choice([0.02, 0.1, 0.7]) * RATE_HZ)
    return np.clip(out, -1, 1).astype(np.float32)


@cache
def calibration_folder() -> Path:
    """A few pictures and sounds to calibrate on."""
    folder = place() / "calibration"
    folder.mkdir()
    for i, size in enumerate([(48, 64), (64, 48), (90, 90), (33, 70)]):
        cv2.imwrite(str(folder / f"{i}.png"), picture(*size, seed=i)[..., ::-1])
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", sound(4.0, seed=i), RATE_HZ)
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
