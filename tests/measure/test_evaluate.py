"""Data sets: what is read, what is refused, and that the refusal names the line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgemm.errors import InputError, SourceError
from edgemm.measure.evaluate import evaluate
from edgemm.results import Label, Labels
from edgemm.tasks.rows import read_rows
from tests.cli.cli_runner import CLIP
from tests.export.exported import RATE_HZ, model, sound


class _Names:
    names = ("tench", "tabby, tabby cat", "espresso")


class _Bundle:
    def model_for(self, task: str) -> None:
        assert task == "classify"


class ColourModel:
    """Bright pictures are espresso, dark ones cats."""

    name = "colours"
    bundle = _Bundle()

    def task(self, name: str) -> _Names:
        return _Names()

    def classify(self, image: Path, *, top: int) -> Labels:
        import cv2

        bright = float(cv2.imread(str(image)).mean()) > 128
        return Labels((Label("espresso" if bright else "tabby, tabby cat", 0.9),), 1.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    import cv2

    for folder, value in (("espresso", 250), ("tabby_cat", 3)):
        (tmp_path / folder).mkdir()
        for n in range(2):
            picture = np.full((8, 8, 3), value + n, np.uint8)
            assert cv2.imwrite(str(tmp_path / folder / f"{n}.png"), picture)
    (tmp_path / "espresso" / "notes.txt").write_text("not a picture")
    return tmp_path


def _metadata(data: Path, *lines: str) -> Path:
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return data


def test_folders_are_classes(data: Path) -> None:
    rows = read_rows(data)
    assert [r.label for r in rows] == ["espresso"] * 2 + ["tabby cat"] * 2
    found = evaluate(ColourModel(), data)  # type: ignore[arg-type]
    assert found.metrics == {"top1": 100.0}
    assert found.n == 4
    assert found.examples[2].expected == "tabby, tabby cat"
    assert found.report is not None
    assert found.report.macro.f1 == 100.0
    assert found.report.labels["espresso"].support == 2


def test_limit(data: Path) -> None:
    assert len(read_rows(data, limit=3)) == 3


def test_metadata_is_used_before_folders(data: Path) -> None:
    lines = [
        {"image": "espresso/0.png", "label": "tench"},
        {"image": "tabby_cat/0.png", "label": "tabby"},
    ]
    found = evaluate(ColourModel(), _metadata(data, *map(json.dumps, lines)))  # type: ignore[arg-type]
    assert found.metrics == {"top1": 50.0}
    assert [e.said for e in found.examples] == ["espresso", "tabby, tabby cat"]
    assert found.report is not None
    assert found.report.labels["espresso"].precision == 0.0
    assert found.report.labels["tench"].recall == 0.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "espresso/0.png", "lab', "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('{"label": "tench"}', "names no file"),
        ('{"image": "gone.png", "label": "tench"}', "gone.png, which is missing"),
        ('{"image": "../other/0.png", "label": "tench"}', "points outside"),
        ('{"image": "espresso/0.png", "label": 3}', "label is 3"),
        ('{"image": "espresso/0.png"}', "neither a text nor a label"),
        ('{"image": "espresso/0.png", "label": "tensh"}', "none of the 3 labels"),
    ],
)
def test_torn_rows_name_their_line(data: Path, line: str, words: str) -> None:
    good = '{"image": "espresso/0.png", "label": "espresso"}'
    with pytest.raises(InputError, match=r"metadata\.jsonl line 3") as caught:
        evaluate(ColourModel(), _metadata(data, good, "", line))  # type: ignore[arg-type]
    assert words in caught.value.message


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_rows(tmp_path / "gone")
    with pytest.raises(SourceError, match="has no examples"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "file"), [("ast", "file_name", "said.wav"), ("videomae", "video", "clip.mp4")]
)
def test_labels_of_sounds_and_clips(tmp_path: Path, name: str, field: str, file: str) -> None:
    soundfile.write(tmp_path / "said.wav", sound(1.0), RATE_HZ)
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    with model(name, "onnxruntime") as one:
        labels = one.task("classify").names
        lines = [json.dumps({field: file, "label": label}) for label in labels]
        found = evaluate(one, _metadata(tmp_path, *lines))
    assert found.metrics["top1"] == pytest.approx(100 / len(labels), abs=1e-3)
    assert len({e.said for e in found.examples}) == 1
