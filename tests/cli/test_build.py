"""`edgemm build`: engines for GPUs that are not here, and every way in which one may be stale."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgemm.bundle.archive import pack
from edgemm.bundle.files import cache_dir
from edgemm.bundle.opening import open_bundle
from edgemm.errors import BundleError
from edgemm.runtimes import engines, tensorrt, tensorrt_engine
from edgemm.runtimes.base import SessionOptions
from edgemm.runtimes.cuda import why_no_gpu
from edgemm.runtimes.tensorrt_api import installed_builder
from tests.cli.cli_runner import Cli
from tests.export.exported import exported
from tests.runtimes.pretend_device import PretendDevice

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")

RTX = ("--target", "tensorrt-rtx")
GPUS = ["sm86", "sm89", "sm120"]


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the engines of its vision encoder and embeddings."""
    from edgemm.cli.app import invoke

    place = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(exported("smolvlm", "int8").bundle, place)
    only = ("--component", "vision_encoder,embed_tokens")
    assert invoke(["build", str(place), *RTX, "--gpu", ",".join(GPUS), *only, "--quiet"]) == 0
    return place


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built_once, tmp_path / "bundle"))


def _stale(bundle: Path, builder: str = "") -> dict[str, str]:
    return {f.note.engine.component: f.stale for f in engines.engines_of(open_bundle(bundle), builder)}


def test_engines_stand_beside_their_graphs(cli: Cli, built: Path) -> None:
    found = cli("inspect", built, "--json").json
    assert {e["component"] for e in found["engines"]} == {"vision_encoder", "embed_tokens"}
    assert all(e["gpu"] == GPUS and e["bytes"] > 0 and e["seconds"] > 0 for e in found["engines"])
    assert _stale(built, installed_builder("tensorrt-rtx")) == {"vision_encoder": "", "embed_tokens": ""}
    header = next((built / "engines").glob("vision*.engine")).read_bytes()[:64]
    assert header[:4] == b"vtrt"
    assert header[32] == 4 + 8 + 16  # the architectures, as the library marks them
    graphs = {c.name: c.sha256 for c in open_bundle(built, full=True).manifest.components}
    original = open_bundle(exported("smolvlm", "int8").bundle).manifest
    assert graphs == {c.name: c.sha256 for c in original.components}


def test_what_is_fresh_is_not_built_again(cli: Cli, built: Path) -> None:
    path = next((built / "engines").glob("vision*.engine"))
    before = path.stat().st_mtime_ns
    ran = cli("build", built, *RTX, "--gpu", ",".join(GPUS))
    assert ran.code == 0
    assert "3 engines" in ran.out
    assert "2 of them there before" in ran.out
    assert path.stat().st_mtime_ns == before
    assert len(_stale(built)) == 3


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap_for_another(path: Path) -> None:
    path.write_bytes(next(p for p in path.parent.glob("*.engine") if p != path).read_bytes())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(_cut, "torn"), (_change, "changed"), (_swap_for_another, "torn"), (Path.unlink, "cannot be read")],
)
def test_a_harmed_engine_is_noticed_and_built_again(cli: Cli, built: Path, harm: Any, said: str) -> None:
    harm(next((built / "engines").glob("embed_tokens*.engine")))
    assert said in _stale(built)["embed_tokens"]
    assert cli("inspect", built).code == 0
    ran = cli("build", built, *RTX, "--gpu", ",".join(GPUS), "--component", "embed_tokens")
    assert ran.code == 0
    assert _stale(built)["embed_tokens"] == ""


def test_an_engine_of_another_library_or_graph_is_stale(built: Path) -> None:
    assert "tensorrt-rtx 1.0 is installed" in _stale(built, "tensorrt-rtx 1.0")["vision_encoder"]
    note = next((built / "engines").glob("vision*.json"))
    record = json.loads(note.read_text())
    note.write_text(json.dumps(record | {"graph_sha256": "0" * 64}))
    assert _stale(built)["vision_encoder"] == "it was built from another graph"
    note.write_text("{")
    assert "vision_encoder" not in _stale(built)


def test_an_archive_gets_its_engines_in_the_cache(cli: Cli, tmp_path: Path) -> None:
    archive = tmp_path / "robot.edgemm"
    pack(exported("smolvlm", "int8").bundle, archive)
    before = archive.read_bytes()
    ran = cli("build", archive, *RTX, "--gpu", "sm89", "--component", "embed_tokens", "--json")
    assert ran.code == 0
    assert ran.json["engines"][0]["gpu"] == ["sm89"]
    assert archive.read_bytes() == before
    assert list(cache_dir("engines", engines.bundle_key(open_bundle(archive))).glob("*.engine"))


def test_the_librarys_own_refusals_are_errors(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library asked for its own engine, on a GPU that is not there: it says None, and nothing crashes."""
    if not why_no_gpu():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(tensorrt_engine, "CudaDevice", lambda _index: PretendDevice())
    path = next((built / "engines").glob("vision*.engine"))
    with pytest.raises(BundleError, match=r"tensorrt-rtx cannot load vision_encoder.*\.engine: .+"):
        tensorrt.load_session(path, SessionOptions())
    monkeypatch.setattr(tensorrt_engine, "_MAGIC", {})
    garbage = bytes(range(64)) + path.read_bytes()[64:]
    path.write_bytes(garbage)
    note = path.with_suffix(".json")
    record = json.loads(note.read_text())
    record["engine"]["sha256"] = hashlib.sha256(garbage).hexdigest()
    note.write_text(json.dumps(record))
    with pytest.raises(BundleError, match=r"cannot load .*: it is malformed"):
        tensorrt.load_session(path, SessionOptions())


WRONG = {
    "no target": ((), "--target takes tensorrt, tensorrt-rtx or openvino"),
    "another target": (("--target", "coreml"), "'coreml'"),
    "a GPU for tensorrt": (("--target", "tensorrt", "--gpu", "sm87"), "builds for the GPU that is here"),
    "a GPU twice": ((*RTX, "--gpu", "sm86,SM86"), "twice"),
    "no component of that name": ((*RTX, "--gpu", "sm86", "--component", "hearing"), "no component hearing"),
    "a GPU that it does not know": ((*RTX, "--gpu", "sm87", "--component", "embed_tokens"), "does not build for sm87"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_a_usage_error(cli: Cli, case: str) -> None:
    options, said = WRONG[case]
    bundle = exported("smolvlm", "int8").bundle
    ran = cli("build", bundle, *options)
    assert ran.code == 2
    assert said in ran.err
    assert not (bundle / "engines").exists()


def test_without_a_gpu_one_must_be_named(cli: Cli) -> None:
    from edgemm.runtimes.tensorrt_api import _has_gpu

    if _has_gpu():
        pytest.skip("there is a GPU here")
    ran = cli("build", exported("smolvlm", "int8").bundle, *RTX)
    assert ran.code == 2
    assert "--gpu sm86,sm89,sm120" in ran.err
