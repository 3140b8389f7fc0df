"""The package itself: its links, its wheel, what a device has to install."""

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

BUNDLE_MAX_BYTES = 48_000_000
HEAVY = {"torch", "transformers", "openvino"}


@pytest.mark.parametrize("name", ["export", "runtimes"])
def test_halves_are_relative_links(repository, name):
    link = repository / "edgemm" / name
    assert link.is_symlink(), "a checkout needs: git config core.symlinks true"
    assert link.readlink() == Path("..") / name
    assert (link / "__init__.py").is_file()


def test_versions_agree(repository):
    import edgemm

    changelog = (repository / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(edgemm.__version__)}", changelog, re.MULTILINE)


def test_default_bundle_is_small_whole_and_licensed(repository):
    from edgemm.bundle.opening import open_bundle

    bundle = open_bundle(repository / "edgemm/default/bundle", full=True)
    assert bundle.bytes <= BUNDLE_MAX_BYTES
    assert bundle.bytes <= 0.32 * bundle.manifest.source.bytes_fp32
    assert len(list((repository / "edgemm/default/licences").glob("*.txt"))) == 4


def test_default_bundle_is_the_checkpoint_in_this_repository(repository):
    from edgemm.bundle.opening import open_bundle
    from edgemm.export.checkpoint import find_checkpoint

    models = open_bundle(repository / "edgemm/default/bundle").manifest.models
    parts = find_checkpoint(repository / "samples/checkpoint").parts
    # Frambicus's speech model is a model of the bundle, too
    assert {m.name: m.source.sha256 for m in models if m.name in parts} == {
        name: find_checkpoint(path).sha256 for name, path in parts.items()
    }


def _pip(python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.wheel
def test_base_resolves_for_cp312_aarch64(repository, tmp_path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    tags = [f"--platform=manylinux_2_{n}_aarch64" for n in (17, 26, 27, 28, 31, 34, 39)]
    result = _pip(
        sys.executable, "install", "--dry-run", "--ignore-installed", "--target", str(tmp_path),
        "--python-version=3.12", "--implementation=cp", "--abi=cp312", "--abi=abi3", "--abi=none",
        *tags, "--platform=manylinux2014_aarch64", "--only-binary=:all:",
        "--report", str(tmp_path / "report.json"), *project["dependencies"],
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    names = {x["metadata"]["name"].lower() for x in report["install"]}
    assert {"onnxruntime", "av", "opencv-python"} <= names
    assert not names & HEAVY


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(repository)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


@pytest.mark.wheel
def test_wheel_holds_one_package_and_no_checkpoint(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"edgemm"}
    assert "edgemm/export/pipeline.py" in names
    assert "edgemm/runtimes/onnxruntime.py" in names
    assert "edgemm/default/bundle/edgemm.json" in names
    assert "edgemm/live/web/page/index.html" in names
    assert not [n for n in names if n.endswith(".safetensors")]


@pytest.mark.wheel
def test_bare_wheel_runs_the_default_bundle(repository, wheel, tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare/bin/python"
    installed = _pip(python, "install", "-c", str(repository / "constraints.txt"), str(wheel))
    assert installed.returncode == 0, installed.stderr[-2000:]
    listed = subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True)
    assert not {x["name"].lower() for x in json.loads(listed)} & HEAVY
    clip = str(repository / "samples/clip/clip.mp4")
    run = subprocess.run(
        [tmp_path / "bare/bin/edgemm", "run", "--camera", clip, "--json", "--no-show"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    events = [json.loads(line) for line in run.stdout.splitlines()]
    said = " ".join(e["text"] for e in events if e["type"] == "transcript" and e["final"])
    assert "respectable" in said
    assert any(e["type"] == "labels" for e in events)
    assert events[-1]["type"] == "summary"
