"""`edgemm predict --words`: when each word was said."""

from __future__ import annotations

from pathlib import Path

import cv2
import jsonschema
import pytest
import soundfile

from tests.cli.cli_runner import Cli
from tests.export.exported import RATE_HZ, exported, model, picture, sound

WORD = {
    "type": "object",
    "required": ["text", "start_s", "end_s"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "minLength": 1},
        "start_s": {"type": "number", "minimum": 0},
        "end_s": {"type": "number", "minimum": 0},
    },
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "sound.wav"
    soundfile.write(path, sound(9.77, seed=1), RATE_HZ, subtype="FLOAT")
    return path


def test_words_of_a_recording(cli: Cli, recording: Path) -> None:
    bundle = exported("whisper_en").bundle
    argv = ("predict", bundle, recording, "--runtime", "onnxruntime")
    ran = cli(*argv, "--words", "--json")
    assert ran.code == 0, ran.err
    words = ran.json["results"][0]["transcript"]["words"]
    jsonschema.validate(words, {"type": "array", "minItems": 5, "items": WORD})
    with model("whisper_en", "onnxruntime") as one:
        expected = one.transcribe(sound(9.77, seed=1), words=True).words
    assert [(w["text"], w["start_s"], w["end_s"]) for w in words] == [(w.text, w.start_s, w.end_s) for w in expected]
    shown = cli(*argv, "--words").out
    last = expected[-1]
    assert f"{last.start_s:.2f} – {last.end_s:.2f} s" in shown
    assert cli(*argv, "--json").json["results"][0]["transcript"]["words"] == []


def test_words_that_a_bundle_cannot_time(cli: Cli, bundle: Path, recording: Path, tmp_path: Path) -> None:
    assert "alignment" in cli.refused("predict", bundle, recording, "--words")
    image = tmp_path / "picture.png"
    cv2.imwrite(str(image), picture(64, 64))
    assert "takes no words" in cli.refused("predict", bundle, image, "--words")
