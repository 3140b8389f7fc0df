"""`edgemm eval` on captions, questions and sounds: tiny models with random weights, and data sets written here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import soundfile

from edgemm.processing.audio import load_audio
from tests.cli.cli_runner import CLIP, Cli
from tests.export.exported import RATE_HZ, calibration_folder, checkpoint, exported, model, picture, sound

QUESTION = "What is in the picture?"
Write = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> Write:
    """Writes the lines of a data set beside two pictures, a sound and a clip."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(2):
        assert cv2.imwrite(str(folder / f"{i}.png"), picture(40 + i, 50, seed=i)[..., ::-1])
    soundfile.write(folder / "said.wav", sound(2.0), RATE_HZ)
    shutil.copy(CLIP, folder / "clip.mp4")

    def write(*lines: dict[str, Any]) -> Path:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


def _eval(cli: Cli, bundle: Path, data: Path, *more: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = data.parent / "examples.jsonl"
    ran = cli(
        "eval", bundle, "--data", data, "--per-example", out, "--exact", "--runtime", "onnxruntime", "--json", *more
    )
    assert ran.code == 0, ran.err
    return ran.json, [json.loads(line) for line in out.read_text().splitlines()]


def _captions(folder: Path) -> list[str]:
    with model("smolvlm", "onnxruntime") as one:
        return [one.caption(folder / f"{i}.png").text for i in range(2)]


def test_captions(cli: Cli, data: Write) -> None:
    own = _captions(data())
    assert own[0] != own[1]
    bundle = exported("smolvlm").bundle
    right = data(
        {"image": "0.png", "text": own[0]},
        {"file_name": "1.png", "text": ["the rain on the window", own[1]]},
    )
    document, lines = _eval(cli, bundle, right, "--against", bundle)
    assert document["metrics"] == pytest.approx({"cider": document["metrics"]["cider"], "bleu4": 100, "rouge_l": 100})
    assert document["metrics"]["cider"] > 300
    assert document["drop"] == {"cider": 0.0, "bleu4": 0.0, "rouge_l": 0.0}
    assert "report" not in document
    assert [line["expected"] for line in lines] == [[own[0]], ["the rain on the window", own[1]]]
    assert [line["said"] for line in lines] == own
    assert lines[1]["scores"]["rouge_l"] == 100
    shown = cli("eval", bundle, "--data", right, "--per-example", right.parent / "x.jsonl", "--limit", "1").out
    assert "cider 0.00 %" in shown
    wrong, _ = _eval(cli, bundle, data({"image": "0.png", "text": "a cup"}, {"image": "1.png", "text": own[1]}))
    assert wrong["metrics"]["rouge_l"] < 60


def test_questions_about_pictures_and_videos(cli: Cli, data: Write) -> None:
    with model("smolvlm", "onnxruntime") as one:
        own = one.answer([data() / "0.png"], QUESTION).text
    lines = [
        {"image": "0.png", "question": QUESTION, "answer": [own.upper()] * 2 + ["no"] * 8},
        {"image": "0.png", "question": QUESTION, "answer": f" {own} "},
        {"image": "1.png", "question": QUESTION, "answer": "nobody says this"},
        {"video": "clip.mp4", "question": QUESTION, "answer": "nobody says this"},
    ]
    document, told = _eval(cli, exported("smolvlm").bundle, data(*lines))
    assert document["metrics"] == {"exact_match": 50.0, "vqa_accuracy": 40.0}
    assert [line["scores"]["vqa_accuracy"] for line in told] == [60.0, 100.0, 0.0, 0.0]
    assert all(line["question"] == QUESTION for line in told)


def test_questions_about_sound(cli: Cli, data: Write) -> None:
    bundle = exported("qwen2_audio").bundle
    with model("qwen2_audio", "onnxruntime") as one:
        samples, rate_hz = load_audio(data() / "said.wav")
        own = one.answer([], "What?", audio=samples, sample_rate_hz=rate_hz).text
    asked = {"audio": "said.wav", "question": "What?", "answer": own}
    document, _ = _eval(cli, bundle, data(asked, asked | {"answer": "nobody says this"}))
    assert document["metrics"]["vqa_accuracy"] == 50.0
    refused = cli.refused("eval", bundle, "--quiet", "--data", data({"image": "0.png", "text": "a cup"}))
    assert "cannot caption" in refused


@pytest.mark.parametrize("name", ["smolvlm", "blip_vqa"])
def test_a_model_that_does_not_hear_names_the_line(cli: Cli, data: Write, name: str) -> None:
    row = {"image": "0.png", "question": "What?", "answer": "x"}
    folder = data(row, row | {"audio": "said.wav"})
    refused = cli.refused("eval", exported(name).bundle, "--quiet", "--data", folder)
    assert "metadata.jsonl line 2: this model sees and does not hear" in refused


def test_a_row_that_asks_nothing_names_the_line(cli: Cli, data: Write) -> None:
    folder = data({"image": "0.png", "text": "a cup"}, {"image": "1.png", "question": QUESTION})
    refused = cli.refused("eval", exported("smolvlm").bundle, "--quiet", "--data", folder)
    assert "metadata.jsonl line 2 has a question and no answer" in refused


def test_the_gate_takes_captions(cli: Cli, data: Write, tmp_path: Path) -> None:
    folder = data(*({"image": f"{i}.png", "text": text} for i, text in enumerate(_captions(data()))))
    asked = ("export", checkpoint("smolvlm"), "-o", tmp_path / "bundle", "--int8", "--calib", calibration_folder())
    ran = cli(*asked, "--data", folder, "--max-drop", "1000", "--json")
    assert ran.code == 0, ran.err
    gate = ran.json["gate"]
    assert gate["metric"] in ("cider", "rouge_l")
    assert gate["before"] > gate["after"] - 1e-9
    assert gate["before"] >= 100
