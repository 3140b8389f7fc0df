"""Engines for the GPU that is here, and runtimes that need one: up to where the library or the GPU is missing.

The GPU is pretended; the builder, where there is one, is TensorRT-RTX's in TensorRT's place.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.measure.building import build
from edgemm.runtimes import cuda, engines, registry, tensorrt_api, tensorrt_worker
from tests.cli.cli_runner import CLIP, Cli
from tests.export.exported import exported

HERE = SimpleNamespace(name="Pretend GPU", sm="sm87", driver=12060)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "why_no_gpu", lambda: "")
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "")
    monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))


@pytest.mark.usefixtures("gpu")
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_the_library_its_pip_command_is_said(cli: Cli) -> None:
    bundle = exported("smolvlm", "int8").bundle
    ran = cli("build", bundle, "--target", "tensorrt")
    assert ran.code == 1
    assert "tensorrt is not available" in ran.err
    assert 'pip install "edgemm[tensorrt]"' in ran.err
    assert not (bundle / "engines").exists()


@pytest.mark.skipif(not cuda.why_no_gpu(), reason="there is a GPU here")
def test_without_a_gpu_there_is_nothing_to_build_for(cli: Cli) -> None:
    ran = cli("build", exported("smolvlm", "int8").bundle, "--target", "tensorrt")
    assert ran.code == 2
    assert "no GPU here to build for" in ran.err


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[tensorrt_worker.Job]:
    """TensorRT-RTX in TensorRT's place, and the jobs that it was given."""
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    jobs: list[tensorrt_worker.Job] = []

    def here(job: tensorrt_worker.Job, _path: Path, _tell: Any) -> dict[str, Any]:
        jobs.append(job)
        assert tensorrt_worker.Job(**asdict(job)) == job
        return tensorrt_worker._build(job, lambda **_: None)

    version = tensorrt_api.installed_builder("tensorrt-rtx").partition(" ")[2]
    monkeypatch.setitem(tensorrt_api.PACKAGES, "tensorrt", "tensorrt_rtx")
    monkeypatch.setattr("edgemm.measure.building.installed_builder", lambda target: f"{target} {version}")
    monkeypatch.setattr(engines, "_in_child", here)
    return jobs


@pytest.mark.usefixtures("gpu")
def test_tensorrt_is_told_no_gpu_and_its_engine_is_of_the_one_that_is_here(
    library: list[tensorrt_worker.Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(exported("smolvlm", "int8").bundle, tmp_path / "bundle"))

    def build_it() -> Any:
        return build(open_bundle(place), "tensorrt", (), ("embed_tokens",), lambda *_: None)

    (note,) = build_it().notes
    assert library[0].gpus == ()
    assert (note.engine.target, note.engine.gpu, note.engine.driver) == ("tensorrt", ("sm87",), "CUDA 12.6")
    assert open_bundle(place, full=True).manifest.engines == (note.engine,)
    assert build_it().kept == 1
    # The bundle is copied to another device: what is there is not for it.
    monkeypatch.setattr(cuda, "gpus", lambda: (SimpleNamespace(name="Other", sm="sm110", driver=13000),))
    made = build_it()
    assert made.kept == 0
    assert made.notes[0].engine.gpu == ("sm110",)
    assert len(library) == 2


@pytest.mark.skipif(not cuda.why_no_gpu(), reason="there is a GPU here")
@pytest.mark.parametrize("verb", [("predict", str(CLIP)), ("run", "--no-show", "--mic", "none", "--camera", str(CLIP))])
def test_a_runtime_that_needs_a_gpu_says_so(cli: Cli, bundle: Path, verb: tuple[str, ...]) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("there is no TensorRT-RTX for this machine")
    ran = cli(verb[0], bundle, *verb[1:], "--runtime", "tensorrt-rtx")
    assert ran.code == 1
    assert "tensorrt-rtx cannot run here: there is no GPU" in ran.err
    assert "--runtime auto" in ran.err
