"""A bundle as one `.edgemm` file, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemm.bundle.archive import pack
from tests.cli.cli_runner import CHECKPOINT, CLIP, Cli

RUN = ("--camera", str(CLIP), "--mic", "none", "--task", "classify", "--max-frames", "2", "--as-fast-as-possible")


@pytest.fixture(scope="module")
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default bundle in one file."""
    path = tmp_path_factory.mktemp("archives") / "default.edgemm"
    pack(bundle, path)
    return path


def test_export_writes_one_file(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "vad.edgemm"
    argv = ("export", CHECKPOINT / "vad", "-o", target, "--json")
    ran = cli(*argv)
    assert ran.code == 0, ran.err
    assert ran.json["bundle"] == str(target)
    assert ran.json["bytes"] == target.stat().st_size
    found = cli("inspect", target, "--json").json
    assert (found["kind"], found["path"], found["model_type"]) == ("bundle", str(target), "silero-vad")
    first = target.stat().st_ino
    assert "--overwrite" in cli.refused(*argv[:-1])
    assert target.stat().st_ino == first
    assert cli(*argv, "--overwrite").code == 0
    assert target.stat().st_ino != first
    assert list(tmp_path.iterdir()) == [target]


def test_export_spares_what_is_no_bundle(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "letter.edgemm").write_text("dear")
    argv = ("export", CHECKPOINT / "vad", "--overwrite", "-o")
    assert "no bundle" in cli.refused(*argv, tmp_path / "letter.edgemm")
    assert (tmp_path / "letter.edgemm").read_text() == "dear"
    (tmp_path / "folder.edgemm").mkdir()
    assert "no file" in cli.refused(*argv, tmp_path / "folder.edgemm")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_export_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    cli.refused("export", tmp_path / "gone", "-o", tmp_path / "out.edgemm")
    assert list(tmp_path.iterdir()) == []


def test_every_verb_takes_one(cli: Cli, archive: Path, bundle: Path) -> None:
    own = cli("inspect", bundle, "--json").json
    assert cli("inspect", archive, "--json").json == own | {"path": str(archive)}
    assert "espresso" in cli("predict", archive, CLIP, "--task", "classify").out
    events = [json.loads(line) for line in cli("run", archive, *RUN, "--json").out.splitlines()]
    assert events[-1]["processed"] == 2
    assert events[0]["bundle"] == "default"
    assert [p.name for p in archive.parent.iterdir()] == ["default.edgemm"]


@pytest.mark.parametrize("damage", ["cut", "emptied", "text", "flipped"])
def test_a_torn_one_is_refused(cli: Cli, archive: Path, tmp_path: Path, damage: str) -> None:
    whole = archive.read_bytes()
    half = len(whole) // 2
    torn = tmp_path / "torn.edgemm"
    torn.write_bytes(
        {
            "cut": whole[:half],
            "emptied": b"",
            "text": b"only words",
            "flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
        }[damage]
    )
    for argv in (("inspect", torn), ("predict", torn, CLIP), ("run", torn, "--quiet", *RUN)):
        assert "torn" in cli.refused(*argv)
    assert list(tmp_path.iterdir()) == [torn]
