"""The gates on the command line: exit codes, JSON, and options without what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemm.measure.bench import bench, check_gate
from tests.cli.cli_runner import Cli
from tests.export.exported import calibration_folder, checkpoint, exported
from tests.export.planted import LAYER, labelled, planted


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


def _int8(path: Path, target: Path) -> tuple[str | Path, ...]:
    return ("export", path, "-o", target, "--int8", "--calib", calibration_folder())


def test_the_gate_in_json(cli: Cli, target: Path) -> None:
    ran = cli(*_int8(planted(), target), "--data", labelled(), "--max-drop", "1", "--json")
    assert ran.code == 0, ran.err
    gate = ran.json["gate"]
    assert (gate["metric"], gate["before"], gate["max_drop"]) == ("top1", 100.0, 1.0)
    (node,) = gate["restored"]
    assert LAYER in node
    shown = cli("inspect", target)
    assert shown.code == 0


def test_a_speed_that_no_machine_has_is_refused(cli: Cli, target: Path) -> None:
    asked = _int8(checkpoint("vit"), target)
    ran = cli(*asked, "--require-speedup", "1000")
    assert ran.code == 3
    assert "not 1000 times as fast as fp32 here: model" in ran.errors[-1]
    assert not target.exists()
    document = cli(*asked, "--require-speedup", "1000", "--allow-slower", "--json").json
    assert document["speedup"]["model"] > 0
    (speed,) = json.loads((target / "edgemm.json").read_text())["checks"]["speed"]
    assert speed["low"] <= speed["ratio"]
    assert speed["runtime"] == "onnxruntime"
    assert document["speedup"] == {"model": speed["ratio"]}
    assert (target / "report" / "precision.json").is_file()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--int8", "--max-drop", "1"), "--data"),
        (("--int8", "--data", "DATA", "--max-drop", "-1"), "below 0"),
        (("--int8", "--allow-slower"), "--require-speedup"),
        (("--int8", "--require-speedup", "0"), "above 0"),
        (("--data", "DATA"), "--int8"),
        (("--require-speedup", "1.05"), "--int8"),
        (("--int8", "--calib-method", "kl"), "mse, max, percentile, entropy"),
        (("--fp16", "--calib-method", "max"), "--int8"),
    ],
)
def test_options_without_what_they_need(cli: Cli, target: Path, more: tuple[str, ...], says: str) -> None:
    given = [str(labelled()) if word == "DATA" else word for word in more]
    calib = ("--calib", calibration_folder()) if "--int8" in more else ()
    assert says in cli.refused("export", checkpoint("vit"), "-o", target, *calib, *given, code=2)


def test_data_that_cannot_judge(cli: Cli, target: Path, tmp_path: Path) -> None:
    asked = _int8(checkpoint("vit"), target)
    assert "does not exist" in cli.refused(*asked, "--data", tmp_path / "gone")
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png"}\n')
    assert "neither a text nor a label" in cli.refused(*asked, "--data", tmp_path)


def test_bench_has_a_gate(cli: Cli) -> None:
    whole, small = exported("vit").bundle, exported("vit", "int8").bundle
    assert "--against" in cli.refused("bench", small, "--gate", "1.05", code=2)
    argv = ("bench", small, "--against", whole, "--rounds", "20")
    ran = cli(*argv, "--gate", "1000")
    assert ran.code == 3
    assert "not 1000 times as fast as the other bundle: model on" in ran.errors[-1]
    held = cli(*argv, "--gate", "0.001", "--json")
    assert held.code == 0
    for runtime, low in held.json["ratio_least"]["model"].items():
        assert 0 < low <= held.json["ratio"]["model"][runtime] * 1.001


def test_a_bundle_is_not_faster_than_itself() -> None:
    from edgemm.bundle.opening import open_bundle
    from edgemm.errors import CheckFailed

    whole = open_bundle(exported("vit").bundle)
    with pytest.raises(CheckFailed):
        check_gate(bench(whole, against=whole, rounds=30), 1.5)
