"""What a line of a data set is read as, and that what it cannot be is refused by its number."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import soundfile

from edgemm.errors import InputError
from edgemm.measure.asking import task_of
from edgemm.tasks.rows import read_rows


@pytest.fixture
def folder(tmp_path, repository):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8, 3), 90, np.uint8))
    soundfile.write(tmp_path / "b.wav", np.zeros(1600, np.float32), 16_000)
    shutil.copy(repository / "samples" / "clip" / "clip.mp4", tmp_path / "c.mp4")
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


def rows(folder, *lines):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_rows(folder)


@pytest.mark.parametrize(
    ("line", "task", "kind"),
    [
        ({"image": "a.png", "text": "a cup"}, "caption", "image"),
        ({"file_name": "a.png", "text": ["a cup", "the cup"]}, "caption", "image"),
        ({"audio": "b.wav", "text": "said"}, "transcribe", "audio"),
        ({"file_name": "b.wav", "text": "said"}, "transcribe", "audio"),
        ({"audio": "c.mp4", "text": "said"}, "transcribe", "audio"),
        ({"image": "a.png", "question": "what?", "answer": "a cup"}, "answer", "image"),
        ({"image": "a.png", "question": "what?", "answer": ["a", "b"], "label": "cup"}, "answer", "image"),
        ({"audio": "b.wav", "question": "what?", "answer": "a word"}, "answer", "audio"),
        ({"video": "c.mp4", "question": "what?", "answer": "a cup"}, "answer", "video"),
        ({"file_name": "c.mp4", "question": "what?", "answer": "a cup"}, "answer", "video"),
        ({"file_name": "b.wav", "label": "bark"}, "classify", "audio"),
        ({"video": "c.mp4", "label": "walk"}, "classify", "video"),
    ],
)
def test_what_a_row_is(folder, line, task, kind):
    (row,) = rows(folder, line)
    assert (task_of(row), row.kind) == (task, kind)
    assert row.path.parent == folder
    assert row.sound is None


def test_texts_and_answers_are_kept(folder):
    several, one, other = rows(
        folder,
        {"image": "a.png", "text": ["a cup", "größe"]},
        {"image": "a.png", "question": "what?", "answer": ["yes"] * 10},
        {"audio": "b.wav", "image": "a.png", "question": "what?", "answer": "yes"},
    )
    assert several.texts == ("a cup", "größe")
    assert (one.question, one.answers) == ("what?", ("yes",) * 10)
    assert (other.path.name, other.kind, other.sound) == ("a.png", "image", folder / "b.wav")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"image": "a.png", "question": "what?"}, "a question and no answer"),
        ({"image": "a.png", "answer": "cup"}, "an answer and no question"),
        ({"image": "a.png", "question": "what?", "answer": 3}, "answer is 3, a text or a list of texts"),
        ({"image": "a.png", "question": ["what?"], "answer": "cup"}, "question is .*a text was expected"),
        ({"image": "a.png", "text": []}, r"text is \[\], a text or a list of texts"),
        ({"image": "a.png", "text": ["a", None]}, "a text or a list of texts"),
        ({"audio": "b.wav", "text": ["a", "b"]}, "has 2 texts, one transcript was expected"),
        ({"image": "a.png", "audio": "b.wav", "text": "a cup"}, r"names a\.png and b\.wav: one file was expected"),
        ({"image": "a.png", "video": "c.mp4", "question": "?", "answer": "x"}, "one file was expected"),
        ({"file_name": "notes.txt", "text": "a"}, "is a text file"),
        ({"image": 3, "text": "a"}, "names no file"),
        ({"image": "a.png"}, "nor a question with its answer"),
    ],
)
def test_what_is_refused(folder, line, says):
    with pytest.raises(InputError, match=rf"metadata\.jsonl line 2.*{says}"):
        [task_of(row) for row in rows(folder, {"image": "a.png", "text": "a cup"}, line)]
