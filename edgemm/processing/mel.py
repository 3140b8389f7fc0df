"""Log-mel features of sound taggers and sound–text encoders, as transformers' AST and CLAP extractors make them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import KaldiMelSpec, RepeatMelSpec
from edgemm.errors import InputError
from edgemm.processing.audio import Samples

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_BLOCK = 64
_DB_FLOOR = 1e-10


def triangles(points: Doubles, bins: Doubles) -> Doubles:
    """Triangles with corners at consecutive `points`, sampled at `bins`: `[len(bins), len(points) - 2]`."""
    rising = (bins[:, None] - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - bins[:, None]) / (points[2:] - points[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _kaldi_mel(hz: Doubles) -> Doubles:
    return 1127.0 * np.log(1.0 + hz / 700.0)


def slaney_mel(hz: Doubles) -> Doubles:
    """Slaney's Auditory Toolbox scale: linear below 1 kHz, logarithmic above."""
    return np.where(hz >= 1000.0, 15.0 + np.log(np.maximum(hz, 1.0) / 1000.0) * (27.0 / np.log(6.4)), 3.0 * hz / 200.0)


def slaney_hz(mel: Doubles) -> Doubles:
    """The inverse of `slaney_mel`."""
    return np.where(mel >= 15.0, 1000.0 * np.exp((np.log(6.4) / 27.0) * (mel - 15.0)), 200.0 * mel / 3.0)


@lru_cache(maxsize=8)
def kaldi_filters(spec: KaldiMelSpec) -> Doubles:
    """Kaldi's triangles, straight on the mel scale: `[n_fft // 2 + 1, n_mels]`."""
    ends = _kaldi_mel(np.array([spec.min_hz, spec.sample_rate_hz // 2]))
    bins = _kaldi_mel(spec.sample_rate_hz / spec.n_fft * np.arange(spec.n_fft // 2 + 1, dtype=np.float64))
    return triangles(np.linspace(ends[0], ends[1], spec.n_mels + 2), bins)


@lru_cache(maxsize=8)
def slaney_filters(spec: RepeatMelSpec) -> Doubles:
    """Slaney's triangles of equal area: `[n_fft // 2 + 1, n_mels]`."""
    ends = slaney_mel(np.array([spec.min_hz, spec.max_hz]))
    corners = slaney_hz(np.linspace(ends[0], ends[1], spec.n_mels + 2))
    bins = np.linspace(0, spec.sample_rate_hz // 2, spec.n_fft // 2 + 1)
    return triangles(corners, bins) * (2.0 / (corners[2:] - corners[:-2]))


def _power(frames: NDArray[np.floating], n_fft: int) -> Doubles:
    """Power spectrum `[frames, n_fft // 2 + 1]`; the spectrum is rounded to float32 as the extractors round it."""
    spectrum = np.fft.rfft(frames, n_fft, axis=1).astype(np.complex64)
    return np.asarray(np.abs(spectrum.astype(np.complex128)) ** 2, np.float64)


def kaldi_mel(samples: Samples, spec: KaldiMelSpec) -> Floats:
    """Mono samples at the spec's rate → float32 `[1, n_mels, frames]`.

    Raises InputError for sound shorter than one window.
    """
    if len(samples) < spec.window:
        raise InputError(f"{len(samples)} samples are too few: expected at least {spec.window}")
    windows = np.lib.stride_tricks.sliding_window_view(samples, spec.window)[:: spec.hop][: spec.frames]
    hann, filters = np.hanning(spec.window), kaldi_filters(spec)
    values = np.zeros((spec.frames, spec.n_mels), np.float32)
    for low in range(0, len(windows), _BLOCK):
        frames = windows[low : low + _BLOCK].astype(np.float64)
        frames -= frames.mean(axis=1, keepdims=True)
        before = frames[:, :1] * (1 - spec.pre_emphasis)
        frames[:, 1:] -= spec.pre_emphasis * frames[:, :-1]
        frames[:, :1] = before
        mel = _power(frames * hann, spec.n_fft) @ filters
        values[low : low + len(frames)] = np.log(np.maximum(mel, spec.floor))
    values = (values - np.float32(spec.mean)) / np.float32(2 * spec.std)
    return np.ascontiguousarray(values.T)[None]


def fill(samples: Samples, length: int, how: str) -> Samples:
    """`samples` made `length` long as CLAP does; of longer sound, the beginning."""
    times = length // len(samples)
    if how != "pad" and times:
        samples = np.tile(samples, times + 1 if how == "repeat" else times)
    samples = samples[:length]
    return np.pad(samples, (0, length - len(samples)))


def repeat_mel(samples: Samples, spec: RepeatMelSpec) -> Floats:
    """Mono samples at the spec's rate → float32 decibels `[1, n_mels, frames]`."""
    length = round(spec.chunk_s * spec.sample_rate_hz)
    mirrored = np.pad(fill(samples, length, spec.fill), spec.n_fft // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, spec.n_fft)[:: spec.hop]
    hann, filters = np.hanning(spec.n_fft + 1)[:-1], slaney_filters(spec)
    values = np.empty((len(windows), spec.n_mels), np.float32)
    for low in range(0, len(windows), _BLOCK):
        mel = _power(windows[low : low + _BLOCK].astype(np.float64) * hann, spec.n_fft) @ filters
        values[low : low + len(mel)] = 10.0 * np.log10(np.maximum(mel, _DB_FLOOR))
    return np.ascontiguousarray(values.T)[None]
