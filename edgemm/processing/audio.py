"""Sound: checking, mixing, resampling and reading files."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemm.errors import InputError, SourceError
from edgemm.processing.media import open_media

Samples = NDArray[np.float32]

_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
_MAX_CHANNELS = 64
_RATES_HZ = (1000, 768_000)


def to_mono(samples: ArrayLike) -> Samples:
    """Mono float32 `[samples]` in -1…1 of `[samples]` or `[samples, channels]`.

    Channels are averaged. Takes int16, int32 (scaled by full scale) and floats (as they are).
    Raises `InputError` for nothing, NaN or infinity, another dtype, or channels first.
    """
    array: NDArray[Any] = np.asarray(samples)
    if array.size == 0:
        raise InputError("the sound is empty: expected at least one sample")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > _MAX_CHANNELS):
        raise InputError(
            f"a sound of shape {list(array.shape)} is not usable: expected [samples] or [samples, channels]",
            hint="transpose it if the channels come first",
        )
    if array.dtype in _FULL_SCALE:
        array = array.astype(np.float32) / np.float32(_FULL_SCALE[array.dtype])
    elif array.dtype.kind != "f":
        raise InputError(f"a sound of {array.dtype} is not usable: expected int16, int32 or float32 in -1…1")
    if not np.isfinite(array).all():
        raise InputError("the sound has NaN or infinite samples", hint="look at what recorded or decoded it")
    mono = array if array.ndim == 1 else array.mean(axis=1)
    return np.ascontiguousarray(mono, np.float32)


def _check_rates(*rates_hz: float) -> None:
    low, high = _RATES_HZ
    for rate_hz in rates_hz:
        if not low <= rate_hz <= high:
            raise InputError(f"cannot use a sample rate of {rate_hz} Hz: expected {low} to {high}")


def to_mono_16k(samples: ArrayLike, sample_rate_hz: float, target_hz: float = 16_000) -> Samples:
    """`to_mono`, then resampled to `target_hz` (SoX's high quality), float32 `[samples]`.

    Raises `InputError` as `to_mono` does, and for an impossible rate.
    """
    mono = to_mono(samples)
    _check_rates(sample_rate_hz, target_hz)
    if sample_rate_hz == target_hz:
        return mono
    import soxr

    return np.asarray(soxr.resample(mono, sample_rate_hz, target_hz, quality="HQ"), np.float32)


class StreamResampler:
    """`to_mono_16k` for sound that comes block by block: joined, the output is the same.

    It holds back some milliseconds until `flush`. Not thread-safe: one for each source.
    """

    def __init__(self, sample_rate_hz: float, target_hz: float = 16_000) -> None:
        _check_rates(sample_rate_hz, target_hz)
        self._stream: Any = None
        if sample_rate_hz != target_hz:
            import soxr

            self._stream = soxr.ResampleStream(sample_rate_hz, target_hz, 1, dtype="float32", quality="HQ")

    def push(self, samples: ArrayLike) -> Samples:
        """The next samples at the target rate, possibly none. Raises as `to_mono` does."""
        mono = to_mono(samples)
        if self._stream is None:
            return mono
        return np.asarray(self._stream.resample_chunk(mono), np.float32)

    def flush(self) -> Samples:
        """What was held back; the resampler then starts anew."""
        nothing = np.empty(0, np.float32)
        if self._stream is None:
            return nothing
        rest = np.asarray(self._stream.resample_chunk(nothing, last=True), np.float32)
        self._stream.clear()
        return rest


def load_audio(path: str | os.PathLike[str], *, max_s: float = 4 * 3600.0) -> tuple[Samples, int]:
    """The first sound track of a media file: mono float32 `[samples]`, and its sample rate in Hz.

    Raises `SourceError` for a missing, empty or torn file, a text, one without sound, or one that
    lasts longer than `max_s`.
    """
    import av

    blocks: list[Samples] = []
    count = 0
    with open_media(path, "a sound file") as container:
        if not container.streams.audio:
            raise SourceError(f"{path} has no sound", hint="give a file with a sound track")
        stream = container.streams.audio[0]
        rate_hz = int(stream.rate)
        to_float = av.AudioResampler(format="fltp", rate=rate_hz)
        for frame in chain(container.decode(stream), (None,)):
            for part in to_float.resample(frame):
                blocks.append(part.to_ndarray().mean(axis=0, dtype=np.float32))
                count += len(blocks[-1])
            if count > max_s * rate_hz:
                raise SourceError(f"{path} is longer than {max_s:g} s", hint="cut it into pieces")
    if not count:
        raise SourceError(f"{path} holds no samples", hint="record it again")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise SourceError(f"{path} has NaN or infinite samples", hint="convert it anew")
    return samples, rate_hz
