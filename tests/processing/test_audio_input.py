"""Checking, mixing, resampling and reading sound."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import soxr

from edgemm.errors import InputError, SourceError
from edgemm.processing.audio import StreamResampler, load_audio, to_mono, to_mono_16k

RATES_HZ = [8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]


def test_to_mono_scales_and_mixes():
    floats = np.array([0.0, 0.5, -1.0], np.float32)
    np.testing.assert_array_equal(to_mono(floats), floats)
    np.testing.assert_array_equal(to_mono(floats.astype(np.float64)), floats)
    np.testing.assert_array_equal(to_mono((floats * 2**15).astype(np.int16)), floats)
    np.testing.assert_array_equal(to_mono((floats * 2.0**31).astype(np.int32)), floats)
    stereo = np.stack([floats, np.zeros(3, np.float32)], axis=1)
    np.testing.assert_array_equal(to_mono(stereo), floats / 2)
    np.testing.assert_array_equal(to_mono([0.25, 0.5]), np.array([0.25, 0.5], np.float32))
    assert to_mono(stereo).dtype == np.float32


@pytest.mark.parametrize(
    "bad",
    [
        [], np.zeros((0, 2)), np.array([0.0, np.nan]), np.array([np.inf]), np.zeros((2, 3, 4)),
        np.zeros((2, 16_000)), np.array(["a"]), np.zeros(4, np.uint8), np.zeros(4, np.complex64),
        None, np.float32(0.5),
    ],
    ids=lambda bad: f"{type(bad).__name__}{getattr(bad, 'shape', '')}",
)  # fmt: skip
def test_refuses_unusable_sound(bad):
    with pytest.raises(InputError):
        to_mono(bad)


@pytest.mark.parametrize("rate_hz", [0, -1, 10, 10**7, float("nan")])
def test_refuses_impossible_rates(rate_hz):
    with pytest.raises(InputError, match="sample rate"):
        to_mono_16k(np.zeros(100, np.float32), rate_hz)
    with pytest.raises(InputError, match="sample rate"):
        StreamResampler(rate_hz)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_resampling_keeps_a_tone(rate_hz):
    seconds = 1.0
    tone = np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    made = to_mono_16k(tone.astype(np.float32), rate_hz)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert made.dtype == np.float32
    assert len(made) == 16_000
    np.testing.assert_allclose(made[800:-800], expected[800:-800], atol=2e-3)


@pytest.mark.parametrize("block", [1, 7, 160, 441, 4096, 100_000])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_streaming_equals_at_once(sound, rate_hz, block):
    samples = sound(0.31, rate_hz)
    resampler = StreamResampler(rate_hz)
    for _ in range(2):  # flushing starts anew
        parts = [resampler.push(samples[i : i + block]) for i in range(0, len(samples), block)]
        made = np.concatenate([*parts, resampler.flush()])
        expected = soxr.resample(samples, rate_hz, 16_000, quality="HQ")
        assert abs(len(made) - len(expected)) <= 1
        count = min(len(made), len(expected))
        np.testing.assert_allclose(made[:count], expected[:count], atol=1e-4)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_reads_wav_as_soundfile_does(sound, tmp_path, rate_hz, channels, subtype):
    path = tmp_path / "ton & größe.wav"
    samples = np.stack([sound(0.2, rate_hz), 0.5 * sound(0.2, rate_hz)][:channels], axis=1)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    made, made_rate_hz = load_audio(path)
    assert made_rate_hz == rate_hz
    np.testing.assert_allclose(made, expected.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_reads_compressed_sound(sound, tmp_path, suffix):
    path = tmp_path / f"ton.{suffix}"
    samples = sound(1.0, 44_100)
    soundfile.write(path, samples, 44_100)
    made, rate_hz = load_audio(str(path))
    assert rate_hz == 44_100
    count = min(len(made), len(samples))
    assert abs(len(made) - len(samples)) <= 2400
    assert np.corrcoef(made[:count], samples[:count])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.wav", b"", "empty"),
        ("text.wav", b"this is not a sound at all\n" * 20, "text file"),
        ("noise.wav", bytes(range(256)) * 20, "not a sound file"),
        ("torn.wav", b"RIFF\x24\x00\x00\x00WAVEfmt ", "not a sound file|no sound|holds no samples"),
    ],
)
def test_bad_files_are_named_as_such(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says) as caught:
        load_audio(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_missing_long_and_broken_sound(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        load_audio(tmp_path / "none.wav")
    with pytest.raises(SourceError, match="directory"):
        load_audio(tmp_path)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    with pytest.raises(SourceError, match=r"longer than 0\.5 s"):
        load_audio(path, max_s=0.5)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(SourceError, match=r"no samples|not a sound"):
        load_audio(path)
    soundfile.write(path, np.full(100, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(SourceError, match="NaN"):
        load_audio(path)
