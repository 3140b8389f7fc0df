"""Spoken questions: flite's voices in a room with noise."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgemm.errors import SourceError
from edgemm.export.frambicus.scenes.backgrounds import Rng
from edgemm.export.frambicus.scenes.config import ScenesConfig
from edgemm.processing.audio import Samples, load_audio, to_mono_16k

RATE_HZ = 16_000
_EARLY_S = 0.005
_LOUDEST = 0.9


def speak(text: str, config: ScenesConfig, rng: Rng) -> Samples:
    """`text` by one of the voices, with the echo of a small room and noise: float32 [samples] at 16 kHz.

    Raises SourceError where flite is not installed or does not know the voice.
    """
    voice = config.voices[rng.integers(len(config.voices))]
    clean = say(text, voice)
    heard = in_room(clean, rng.uniform(*config.reverberation_s), rng)
    noisy = heard + noise(len(heard), rng) * _gain(heard, rng.uniform(*config.noise_db))
    return np.asarray(noisy * (_LOUDEST * rng.uniform(0.3, 1.0) / np.abs(noisy).max()), np.float32)


@lru_cache(maxsize=4096)
def say(text: str, voice: str) -> Samples:
    """flite's own sound, float32 [samples] at 16 kHz. Raises SourceError as `speak`."""
    if shutil.which("flite") is None:
        raise SourceError("flite is not installed", hint="run: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        command = ["flite", "-voice", voice, "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.is_file():
            raise SourceError(f"flite could not say it as {voice}: {done.stderr.strip()[:200]}")
        return to_mono_16k(*load_audio(path))


def in_room(samples: Samples, reverberation_s: float, rng: Rng) -> np.ndarray:
    """The sound and its decaying echo: white noise that falls by 60 dB in `reverberation_s` (Polack's model)."""
    length = int(reverberation_s * RATE_HZ)
    time_s = np.arange(length) / RATE_HZ
    response = rng.normal(0, 1, length) * 10 ** (-3 * time_s / reverberation_s)
    response[time_s < _EARLY_S] = 0
    response *= 0.5 / max(1e-9, float(np.sqrt((response**2).sum())))
    response[0] = 1.0
    size = len(samples) + length
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.asarray(np.fft.irfft(spectrum, size))


def noise(length: int, rng: Rng) -> np.ndarray:
    """Noise of unit power whose spectrum falls somewhere between white and brown."""
    spectrum = np.fft.rfft(rng.normal(0, 1, length))
    slope = rng.uniform(0, 1)
    spectrum *= np.maximum(1, np.arange(len(spectrum))) ** -slope
    made = np.fft.irfft(spectrum, length)
    return np.asarray(made / max(1e-9, float(made.std())))


def _gain(signal: np.ndarray, ratio_db: float) -> float:
    return float(np.sqrt((signal**2).mean()) * 10 ** (-ratio_db / 20))
