"""What is written can be read by the project's own readers, twice the same."""

import json
import shutil

import cv2
import numpy as np
import pytest

from edgemm.errors import InputError, SourceError
from edgemm.export.frambicus.scenes import (
    ScenesConfig,
    load_assets,
    speech,
    write_catalogue,
    write_clips,
    write_scenes,
    write_spoken,
)
from edgemm.export.frambicus.scenes.photos import write_crops, write_photos
from edgemm.processing.audio import load_audio
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video
from edgemm.tasks.rows import read_rows
from tests.frambicus.sprites import draw_assets

CONFIG = ScenesConfig(size_px=112, held_out=0.3)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return load_assets(draw_assets(tmp_path_factory.mktemp("assets") / "a"))


@pytest.fixture(scope="module")
def written(assets, tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), assets, CONFIG, {"train": 4, "test": 2})


def _lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_scenes_are_a_data_set(written):
    rows = read_rows(written / "train")
    captions = [row for row in rows if row.objects is not None]
    assert len(captions) == 4
    assert all(row.texts and row.objects for row in captions)
    assert to_rgb(captions[0].path).shape == (112, 112, 3)
    answers = [line for line in _lines(written / "train") if "question" in line]
    assert all(line["answer"] and line["task"] == "answer" for line in answers)
    described = json.loads((written / "scenes.json").read_text())
    assert described["sha256"] == CONFIG.sha256
    assert described["counts"] == {"train": 4, "test": 2}


def test_written_twice_is_written_the_same(written, assets, tmp_path):
    again = write_scenes(tmp_path, assets, CONFIG, {"train": 4, "test": 2})
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((written / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_many_hands_write_the_same(written, assets, tmp_path):
    again = write_scenes(tmp_path, assets, CONFIG, {"train": 4, "test": 2}, workers=2)
    files = [p.relative_to(written) for p in written.rglob("*") if p.is_file()]
    assert all((written / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_clips_have_their_frames_and_times(assets, tmp_path):
    folder = write_clips(tmp_path, assets, CONFIG, {"train": 2}) / "train"
    for line in _lines(folder):
        frames = list(iter_video(folder / line["video"]))
        assert [round(f.t_s, 2) for f in frames] == line["frame_times_s"]
        assert frames[0].image.shape == (112, 112, 3)
        assert line["t_start_s"] < line["t_end_s"]


def test_a_catalogue_has_every_sprite_once(assets, tmp_path):
    folder = write_catalogue(tmp_path, assets, CONFIG) / "unseen"
    lines = _lines(folder)
    held_out = [s for group in assets.pool(CONFIG, "unseen").values() for s in group]
    assert sorted(line["item"] for line in lines) == sorted(s.code for s in held_out)
    assert all(line["text"].endswith("shape") for line in lines)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_questions_are_spoken(written, tmp_path):
    target = write_spoken(tmp_path / "test", written / "test", CONFIG, limit=2)
    for line in _lines(target):
        samples, rate_hz = load_audio(target / line["audio"])
        assert rate_hz == 16_000
        assert 0.2 < np.abs(samples).max() <= 0.91
        assert len(samples) > 8000
        assert (target / line["image"]).is_file()


def test_without_flite_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(speech.shutil, "which", lambda _: None)
    with pytest.raises(SourceError, match="flite is not installed"):
        speech.speak("who is there?", CONFIG, np.random.default_rng(0))


def test_room_and_noise_keep_the_words_in_front():
    rng = np.random.default_rng(2)
    click = np.zeros(4000, np.float32)
    click[100] = 1
    heard = speech.in_room(click, 0.3, rng)
    assert np.argmax(np.abs(heard)) == 100
    assert np.sqrt((heard[180:] ** 2).sum()) == pytest.approx(0.5, abs=0.1)
    assert speech.noise(5000, rng).std() == pytest.approx(1.0)


def test_photographs_with_a_list(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "mug.jpg"), np.zeros((20, 30, 3), np.uint8))
    listed = tmp_path / "list.txt"
    listed.write_text("# real ones\nmug.jpg: cup | mug, spoon\n")
    (line,) = _lines(write_photos(tmp_path / "out", photos, listed))
    assert line["text"] == "cup, spoon"
    assert line["nouns"] == [["cup", "mug"], ["spoon"]]
    for wrong in ("mug.jpg cup", "mug.jpg:", "tree.jpg: tree", "../list.txt: list"):
        listed.write_text(wrong)
        with pytest.raises(InputError, match="line 1"):
            write_photos(tmp_path / "out", photos, listed)


def test_pieces_of_photographs_have_nothing_to_find(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "street.png"), photo)
    written = write_crops(tmp_path / "crops", [tmp_path / "street.png"], CONFIG, each=3)
    rows = _lines(written)
    assert [row["objects"] for row in rows] == [{"bbox": [], "category": []}] * 3
    assert {row["photo"] for row in rows} == {"street.png"}
    pieces = [to_rgb(written / row["image"]) for row in rows]
    assert all(piece.shape == (112, 112, 3) for piece in pieces)
    assert not np.array_equal(pieces[0], pieces[1])
