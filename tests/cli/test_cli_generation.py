"""`predict` with generation options, and the answers that follow them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from jsonschema import validate

from tests.cli.cli_runner import Cli
from tests.export.exported import exported, model, picture

SCHEMA = {
    "type": "object",
    "properties": {"door": {"enum": ["open", "closed"]}},
    "required": ["door"],
    "additionalProperties": False,
}


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "seen.png"
    cv2.imwrite(str(path), picture(40, 60)[..., ::-1])
    return path


def asked(cli: Cli, seen: Path, *options: str | Path) -> dict[str, object]:
    ran = cli("predict", exported("smolvlm").bundle, seen, "--task", "answer", "--ask", "What?", *options, "--json")
    assert ran.code == 0, ran.err
    answer: dict[str, object] = ran.json["results"][0]["answer"]
    return answer


def test_options_reach_the_answer(cli: Cli, seen: Path) -> None:
    with model("smolvlm", "onnxruntime") as one:
        for options, flags in (
            ({"max_new_tokens": 7}, ("--max-new-tokens", "7")),
            ({"max_new_tokens": 9, "beams": 3}, ("--max-new-tokens", "9", "--beams", "3")),
            (
                {"max_new_tokens": 9, "temperature": 1.2, "top_k": 9, "seed": 3},
                ("--max-new-tokens", "9", "--temperature", "1.2", "--top-k", "9", "--seed", "3"),
            ),
            ({"max_new_tokens": 9, "repetition_penalty": 2.0}, ("--max-new-tokens", "9", "--repetition-penalty", "2")),
        ):
            expected = one.answer([picture(40, 60)], "What?", **options)
            assert asked(cli, seen, *flags, "--runtime", "onnxruntime")["tokens"] == list(expected.tokens)


def test_a_stop_ends_the_text(cli: Cli, seen: Path) -> None:
    whole = str(asked(cli, seen, "--max-new-tokens", "16")["text"])
    stop = whole[len(whole) // 2]
    found = asked(cli, seen, "--max-new-tokens", "16", "--stop", stop, "--stop", "never said")
    assert found["text"] == whole[: whole.index(stop)].strip()


def test_an_answer_by_schema(cli: Cli, seen: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    found = asked(cli, seen, "--schema", tmp_path / "schema.json", "--temperature", "1", "--max-new-tokens", "100")
    validate(json.loads(str(found["text"])), SCHEMA)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--beams", "2", "--temperature", "1"), "beams contradict"),
        (("--top-p", "7"), "top_p 7.0 is out of range"),
        (("--schema", "gone.json"), "gone.json: No such file"),
        (("--schema", "torn.json"), "is not JSON"),
        (("--schema", "list.json"), "holds no JSON object"),
        (("--stop", ""), "a stop string is empty"),
    ],
)
def test_wrong_options_are_usage_errors(
    cli: Cli, seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert words in cli.refused(
        "predict", "--quiet", exported("smolvlm").bundle, seen, "--ask", "What?", *flags, code=2
    )


def test_options_for_tasks_that_write_nothing(cli: Cli, seen: Path) -> None:
    bundle = exported("efficientnet").bundle
    assert "classify takes no beams" in cli.refused("predict", "--quiet", bundle, seen, "--beams", "2")
