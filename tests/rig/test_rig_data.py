"""The builders of evaluation data give what their descriptions promise, and the same every time."""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemm.errors import SourceError
from tests.rig import pictures, speech


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)


def digests(paths: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_librivox_clips_have_sound_and_text() -> None:
    clips = speech.librivox_clips()
    assert len(clips) == 5
    assert sum(len(text.split()) for _, text in clips) == 71
    assert (clips[1][0].name[-8:], clips[1][1]) == (
        "0880.wav",
        "he was not an ill disposed young man",
    )
    for path, text in clips:
        words_per_s = len(text.split()) / (len(read_wav(path)) / 16_000)
        assert 1.5 < words_per_s < 5.0


def test_missing_recordings_name_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speech, "LIBRIVOX", tmp_path)
    with pytest.raises(SourceError, match="apt-get install pocketsphinx-testdata"):
        speech.librivox_clips()


def test_missing_flite_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="apt-get install flite"):
        speech.flite_corpus(tmp_path, words=5)


def test_sentences_are_plain_varied_and_repeatable() -> None:
    chosen = speech.sentences(1000)
    words = " ".join(chosen).split()
    assert 1000 <= len(words) < 1000 + 20
    assert all(word.isascii() and word.isalpha() for word in words)
    assert len(set(words)) > 150
    assert len(set(chosen)) == len(chosen)
    assert chosen == speech.sentences(1000)
    assert chosen[:10] == speech.sentences(2000)[:10]


def test_flite_corpus_speaks_every_voice_clean_and_in_noise(tmp_path: Path) -> None:
    corpus = speech.flite_corpus(tmp_path / "a", words=40)
    again = speech.flite_corpus(tmp_path / "b", words=40)
    assert sum(len(text.split()) for _, text in corpus) >= 40
    assert {path.stem.split("-", 1)[1] for path, _ in corpus[:4]} == {
        "slt-clean",
        "slt-15db",
        "rms-clean",
        "rms-15db",
    }
    assert digests([path for path, _ in corpus]) == digests([path for path, _ in again])


def test_noise_has_the_promised_power(tmp_path: Path) -> None:
    (clean_path, _), (noisy_path, _) = (
        speech.flite_corpus(tmp_path / str(snr_db), 1, ("slt",), (snr_db,))[0] for snr_db in (None, 15.0)
    )
    clean, noisy = read_wav(clean_path), read_wav(noisy_path)
    margin = round(speech.MARGIN_S * 16_000)
    assert not clean[:margin].any()
    assert not clean[-margin:].any()
    power = np.mean(clean[margin:-margin] ** 2)
    snr_db = 10 * np.log10(power / np.mean((noisy - clean) ** 2))
    assert snr_db == pytest.approx(15.0, abs=0.1)


def test_pictures_are_readable_different_and_repeatable(tmp_path: Path) -> None:
    paths = pictures.real_pictures(tmp_path / "a", count=140)
    assert pictures.kinds(paths) == {"photo": 108, "frame": 16, "cut": 16}
    assert len(set(digests(paths))) == 140
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert picture is not None, path
        assert min(picture.shape[:2]) >= 64, path
        assert picture.std() > 5, path
    again = pictures.real_pictures(tmp_path / "b", count=140)
    assert digests(again) == digests(paths)


def test_missing_photos_name_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures, "OPENCV", tmp_path)
    with pytest.raises(SourceError, match="apt-get install opencv-doc"):
        pictures.photo_files()
