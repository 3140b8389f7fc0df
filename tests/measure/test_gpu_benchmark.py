"""The benchmark that a person with a GPU runs: that it ends well without one, and what it prints of a pretended one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu
from edgemm.bundle.opening import open_bundle
from edgemm.runtimes import cuda, registry, tensorrt_engine
from edgemm.runtimes.engines import graph_hash
from tests.export.exported import exported
from tests.runtimes.pretend_gpu import VERSION, pretending, write_engine

RTX = "tensorrt-rtx"


@pytest.mark.skipif(not cuda.why_no_gpu(), reason="there is a GPU here")
@pytest.mark.parametrize(("package", "said"), [("onnx", "there is no GPU"), ("no_such_package", "is not installed")])
def test_without_a_gpu_or_the_library_it_says_so(
    package: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.RUNTIMES, RTX, replace(registry.RUNTIMES[RTX], package=package))
    bundle = exported("moonshine").bundle
    capsys.readouterr()
    assert gpu.main([str(bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nothing was measured: ")
    assert said in err


def test_figures_of_a_pretended_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(exported("moonshine").bundle, tmp_path / "bundle"))
    bundle = open_bundle(place)
    (place / "engines").mkdir()
    for component in bundle.manifest.components[:2]:
        write_engine(
            place / "engines",
            bundle.file(component.file),
            component=component.name,
            graph_sha256=graph_hash(bundle, component),
        )
    monkeypatch.setitem(registry.RUNTIMES, RTX, replace(registry.RUNTIMES[RTX], package="onnx"))
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "")
    monkeypatch.setattr(cuda, "gpus", lambda: (SimpleNamespace(name="Pretend GPU", sm="sm89", driver=13000),))
    with pretending():
        assert tensorrt_engine.installed_builder(RTX) == f"{RTX} {VERSION}"
        code = gpu.main([str(place), "--no-build", "--rounds", "2", "--json", str(tmp_path / "gpu.json")])
    assert code == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["sm"] == "sm89"
    rows = {row["component"]: row for row in found["rows"]}
    assert set(rows) == {"audio_encoder", "decoder", "embed_tokens"}
    ran = [row for row in rows.values() if "error" not in row]
    assert len(ran) == 2
    for row in ran:
        assert row["cosine"] > 0.99999
        assert row["graphs"]["rounds"] == row["plain"]["rounds"] == 2
    (absent,) = (row for row in rows.values() if "error" in row)
    assert "has no engine" in absent["error"]
    if "error" not in rows["decoder"]:
        assert rows["decoder"]["token"]["median_ms"] > 0
    out = capsys.readouterr().out
    assert out.startswith("Pretend GPU, tensorrt-rtx")
    assert all(name in out for name in rows)
