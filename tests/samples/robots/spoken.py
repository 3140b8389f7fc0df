"""Speech with a known text, as a person's pause makes it an utterance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from edgemm.export.frambicus.scenes import speech

BEFORE_S, AFTER_S = 0.3, 0.8  # the endpoint needs half a second of silence


def say(text: str, voice: str = "slt") -> np.ndarray:
    """float32 [samples] at 16 kHz: the text spoken by flite, with silence around it."""
    return np.pad(speech.say(text, voice), (round(BEFORE_S * speech.RATE_HZ), round(AFTER_S * speech.RATE_HZ)))


def write_wave(path: Path, samples: np.ndarray) -> Path:
    """float32 [samples] as a mono wave file of 16 kHz."""
    soundfile.write(path, samples, speech.RATE_HZ)
    return path
