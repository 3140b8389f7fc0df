"""`edgemm build --target openvino`: compiled ahead, read by later loads, and passed over where it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgemm.bundle.files import cache_dir
from edgemm.bundle.opening import open_bundle
from edgemm.model import load
from edgemm.runtimes import engines, openvino
from tests.cli.cli_runner import Cli
from tests.export.exported import exported

OPENVINO = ("--target", "openvino")
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported("smolvlm", "int8").bundle, tmp_path / "bundle"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which graphs were compiled, not read."""
    names: list[str] = []
    original = openvino._compile

    def compile_it(model, path, options):
        names.append(path.stem)
        return original(model, path, options)

    monkeypatch.setattr(openvino, "_compile", compile_it)
    return names


def tokens(bundle: Path) -> list[int]:
    with load(bundle, runtime="openvino") as model:
        return list(model.answer([PICTURE], "what?", max_new_tokens=6).tokens)


def test_what_was_built_is_read(cli: Cli, bundle: Path, compiled: list[str]) -> None:
    built = cli("build", bundle, *OPENVINO, "--json").json
    names = {c.name for c in open_bundle(bundle).manifest.components}
    assert {e["component"] for e in built["engines"]} == names
    assert all(e["target"] == "openvino" and e["gpu"] == ["CPU"] for e in built["engines"])
    assert {f.note.engine.component for f in engines.engines_of(open_bundle(bundle)) if not f.stale} == names
    assert {e["component"] for e in cli("inspect", bundle, "--json").json["engines"]} == names
    del compiled[:]
    first = tokens(bundle)
    assert compiled == []
    for engine in (bundle / "engines").glob("*.engine"):
        engine.write_bytes(engine.read_bytes()[:-1])
    assert tokens(bundle) == first
    assert set(compiled) == names


def test_one_component_for_people(cli: Cli, bundle: Path) -> None:
    shown = cli("build", bundle, *OPENVINO, "--component", "decoder").out
    assert "decoder" in shown
    assert "vision_encoder" not in shown


def test_a_bundle_that_cannot_be_written(cli: Cli, bundle: Path, compiled: list[str]) -> None:
    from edgemm.bundle.archive import pack

    archive = bundle.parent / "bundle.edgemm"
    pack(bundle, archive)
    cli("build", archive, *OPENVINO, "--quiet")
    assert list(cache_dir("openvino").glob("decoder.*.engine"))
    del compiled[:]
    tokens(archive)
    assert compiled == []


@pytest.mark.parametrize(
    ("wrong", "said", "code"),
    [
        (("--gpu", "sm86"), "--device", 2),
        (("--component", "tail"), "no component tail", 2),
        (("--device", "GPU"), "no device GPU", 1),
        (("--device", "NPU"), "no device NPU", 1),
    ],
)
def test_what_cannot_be(cli: Cli, bundle: Path, wrong: tuple[str, str], said: str, code: int) -> None:
    assert said in cli.refused("build", bundle, *OPENVINO, *wrong, code=code)
