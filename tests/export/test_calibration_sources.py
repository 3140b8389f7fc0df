"""Calibration from recordings and data sets: the pictures and sounds that they hold, and no more of them in memory."""

from __future__ import annotations

import itertools
import json

import cv2
import numpy as np
import pytest
import soundfile

from edgemm.errors import InputError, SourceError
from edgemm.export.pipeline import export
from edgemm.export.precision.calibration import RATE_HZ, digest, load_examples
from edgemm.export.precision.calibration_sources import spread
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.mcap_file import McapRecorder
from tests.export.exported import checkpoint, picture, sound

FRAMES, SOUND_S = 30, 8.0


@pytest.fixture
def recording(tmp_path):
    """Thirty pictures and eight seconds of sound, in blocks of 20 ms."""
    path = tmp_path / "session.mcap"
    recorder = McapRecorder(path, wall_offset_s=1.7e9)
    for i in range(FRAMES):
        image = picture(48, 64, seed=i)
        recorder.write_frame(Frame(id=i, source="camera", image=image, t_capture_s=i / 10))
    samples, size = sound(SOUND_S), RATE_HZ // 50
    for i in range(0, len(samples), size):
        recorder.write_audio(AudioBlock("microphone", samples[i : i + size], RATE_HZ, i / RATE_HZ))
    recorder.close()
    return path


def test_a_recording_gives_its_pictures_and_its_sound(recording):
    examples = load_examples([recording])
    images = [e.image for e in examples if e.image is not None]
    assert len(images) == FRAMES
    for seed in (0, 17, FRAMES - 1):
        want = picture(48, 64, seed=seed).astype(float)
        assert np.abs(images[seed] - want).mean() < 8  # JPEG
        assert (
            np.abs(images[seed] - want).mean()
            < np.abs(images[seed] - picture(48, 64, seed=99).astype(float)).mean() / 3
        )
    heard = [e.audio for e in examples if e.audio is not None]
    assert [len(a) for a in heard[::3]] == [6 * RATE_HZ, 2 * RATE_HZ]
    np.testing.assert_allclose(np.concatenate(heard[::3]), sound(SOUND_S), atol=1 / 32768)
    assert digest(examples) == digest(load_examples([recording.parent])), "found in a folder too"


def test_a_recording_calibrates_an_export(recording, tmp_path):
    manifest = export(checkpoint("vit"), tmp_path / "b", precision="int8", calibrate_on=[recording]).manifest
    used = manifest.quantization.calibration["model"]
    assert used.n == FRAMES
    assert used.sha256 == digest(load_examples([recording]))


def test_a_recording_without_pictures_or_sound_is_refused(tmp_path):
    path = tmp_path / "events.mcap"
    recorder = McapRecorder(path, wall_offset_s=0.0)
    recorder.write_event({"type": "status"}, 0.0)
    recorder.close()
    if not path.exists():
        path.write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(SourceError, match="no picture or sound"):
        load_examples([path])


def _data_set(folder, *rows):
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), picture(48, 64, seed=1)[..., ::-1])
    cv2.imwrite(str(folder / "unlisted.png"), picture(48, 64, seed=2)[..., ::-1])
    soundfile.write(folder / "b.wav", sound(2.0), RATE_HZ)
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_of_a_data_set_the_rows_count(tmp_path):
    rows = [
        {"image": "a.png", "question": "What is it?"},
        {"file_name": "a.png"},
        {"audio": "b.wav", "text": "said"},
        {"user": "u", "item": "i", "score": 1},
    ]
    examples = load_examples([_data_set(tmp_path / "d", *map(json.dumps, rows))])
    (seen,) = [e for e in examples if e.image is not None]
    assert seen.question == "What is it?"
    np.testing.assert_array_equal(seen.image, picture(48, 64, seed=1))
    assert len(examples) == 1 + 3


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{torn", "line 2 is not JSON"),
        ('{"image": "gone.png"}', r"line 2 names gone\.png, which is missing"),
        ('{"image": "../a.png"}', "line 2 points outside"),
    ],
)
def test_a_useless_row_is_named(tmp_path, row, says):
    with pytest.raises(InputError, match=says):
        load_examples([_data_set(tmp_path / "d", '{"image": "a.png"}', row)])


@pytest.mark.parametrize("count", [0, 1, 47, 48, 95, 96, 97, 430, 10_000])
def test_spread_is_even_and_holds_little(count):
    held, most = [], 0

    class Item:
        def __init__(self, number):
            nonlocal most
            self.number = number
            held.append(number)
            most = max(most, len(held))

        def __del__(self):
            held.remove(self.number)

    found = [item.number for item in spread((Item(i) for i in range(count)), 48)]
    assert len(found) == min(count, 48)
    assert most <= 2 * 48 + 1
    assert len({b - a for a, b in itertools.pairwise(found)}) <= 1
    if count >= 96:
        assert found[-1] >= 0.45 * count


def test_a_video_is_read_as_before():
    assert spread(range(430), 48) == list(range(430))[::8][:48]
