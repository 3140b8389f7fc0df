"""Sound → what an audio graph takes, as transformers' Wav2Vec2 and Whisper extractors make it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.spec import AudioSpec, KaldiMelSpec, LogMelSpec, RawAudioSpec, RepeatMelSpec
from edgemm.errors import InputError
from edgemm.processing.audio import Samples, to_mono
from edgemm.processing.mel import kaldi_mel, repeat_mel, slaney_hz, slaney_mel, triangles

Floats = NDArray[np.float32]

_BLAS_ALONE = 600_000


@dataclass(frozen=True, eq=False)
class AudioInput:
    """One sound, ready for its graph.

    `name` is the graph's input: `input_values` with float32 `values` `[1, samples]`, or
    `input_features` with `[1, n_mels, frames]`. `attention_mask` is int64 `[1, samples]` or
    `[1, frames]`: 1 where there is sound, 0 where there is padding.
    """

    name: str
    values: Floats
    attention_mask: NDArray[np.int64]


def prepare(samples: Samples, spec: AudioSpec) -> AudioInput:
    """Mono samples at `spec.sample_rate_hz` → the graph's input; see `raw`, `log_mel` and `edgemm.processing.mel`."""
    if isinstance(spec, RawAudioSpec):
        return raw(samples, spec)
    if isinstance(spec, KaldiMelSpec):
        return _whole("input_features", kaldi_mel(to_mono(samples), spec))
    if isinstance(spec, RepeatMelSpec):
        return _whole("input_features", repeat_mel(to_mono(samples), spec))
    return log_mel(samples, spec)


def _whole(name: str, values: Floats) -> AudioInput:
    return AudioInput(name, values, np.ones((1, values.shape[2]), np.int64))


def raw(samples: Samples, spec: RawAudioSpec) -> AudioInput:
    """The waveform, normalised and padded as `spec` says (wav2vec 2.0, Moonshine).

    Raises `InputError` for unusable sound and for sound longer than `max_s`.
    """
    samples = to_mono(samples)
    length, rate_hz = len(samples), spec.sample_rate_hz
    if length > round(spec.max_s * rate_hz):
        raise InputError(
            f"the sound lasts {length / rate_hz:.1f} s: expected at most {spec.max_s:g} s",
            hint="cut it at pauses",
        )
    if spec.normalize:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    wanted = max(length, round(spec.min_s * rate_hz))
    wanted = -(-wanted // spec.pad_to_multiple) * spec.pad_to_multiple
    values = np.zeros((1, wanted), np.float32)
    values[0, :length] = samples
    mask = np.zeros((1, wanted), np.int64)
    mask[0, :length] = 1
    return AudioInput("input_values", values, mask)


@lru_cache(maxsize=8)
def mel_filters(spec: LogMelSpec) -> Floats:
    """Triangular filters of equal area on Slaney's scale, float32 `[n_fft // 2 + 1, n_mels]`."""
    ends = slaney_mel(np.array([spec.min_hz, spec.max_hz]))
    corners = slaney_hz(np.linspace(ends[0], ends[1], spec.n_mels + 2))
    bins = np.linspace(0, spec.sample_rate_hz // 2, spec.n_fft // 2 + 1)
    return (triangles(corners, bins) * (2.0 / (corners[2:] - corners[:-2]))).astype(np.float32)


@lru_cache(maxsize=8)
def _hann(length: int) -> Floats:
    """The periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def _frames(samples: Floats, spec: LogMelSpec, count: int) -> Floats:
    """`log10` of the mel energies of the first frames `[count, n_mels]`; edges are mirrored."""
    mirrored = np.pad(samples, spec.n_fft // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, spec.n_fft)[:: spec.hop][:count]
    filters, hann = mel_filters(spec), _hann(spec.n_fft)
    energies = np.empty((count, spec.n_mels), np.float32)
    # Small products stay in the cache, and BLAS starts no threads that would fight the runtime's.
    step = max(1, _BLAS_ALONE // filters.size)
    for low in range(0, count, step):
        spectrum = np.fft.rfft(windows[low : low + step] * hann, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        np.matmul(power, filters, out=energies[low : low + step])
    return np.log10(np.maximum(energies, np.float32(spec.floor)))


def log_mel(samples: Samples, spec: LogMelSpec, *, whole: bool = False) -> AudioInput:
    """Whisper's features, `values` float32 `[1, n_mels, frames]`.

    By default one chunk of `chunk_s`: shorter sound is padded with silence, longer sound is CUT, as
    the original does. With `whole` neither: `frames = samples // hop`, for long sound that is then
    read window by window. Raises `InputError` for unusable sound; `whole` needs more than
    `n_fft // 2` samples.
    """
    samples = to_mono(samples)
    length = len(samples) if whole else round(spec.chunk_s * spec.sample_rate_hz)
    if length <= spec.n_fft // 2 or length < spec.hop:
        raise InputError(f"{length} samples are too few: expected more than {spec.n_fft // 2}")
    samples = samples[:length]
    total = length // spec.hop
    values = np.full((total, spec.n_mels), np.log10(spec.floor), np.float32)
    # Frames that see nothing but padding stay at the floor.
    used = min(total, -(-(len(samples) + spec.n_fft) // spec.hop))
    padded = np.zeros(min(length, used * spec.hop + spec.n_fft), np.float32)
    padded[: len(samples)] = samples
    values[:used] = _frames(padded, spec, used)
    np.maximum(values, values.max() - np.float32(spec.dynamic_range), out=values)
    values += np.float32(spec.offset)
    values /= np.float32(spec.scale)
    mask = (np.arange(total) * spec.hop < len(samples)).astype(np.int64)
    return AudioInput("input_features", np.ascontiguousarray(values.T)[None], mask[None])
