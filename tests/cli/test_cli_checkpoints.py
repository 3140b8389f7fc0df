"""What `export` and `inspect` take for a checkpoint: hub ids from the local cache, pickles with their flag."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import edgemm.export
from edgemm.cli.export import samples
from tests.cli.cli_runner import Cli
from tests.export.exported import checkpoint

NAME = "robots/tagger"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub with a tagger in it; the hub itself is out of reach."""
    from huggingface_hub import constants

    home = tmp_path / "hub"
    shutil.copytree(checkpoint("efficientnet"), home / "models--robots--tagger" / "snapshots" / "abc123")
    (home / "models--robots--tagger" / "refs").mkdir()
    (home / "models--robots--tagger" / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


def test_export_takes_a_hub_id(cli: Cli, hub: Path, tmp_path: Path) -> None:
    ran = cli("export", NAME, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    from edgemm.bundle.opening import open_bundle

    source = open_bundle(tmp_path / "out").manifest.source
    assert (source.id, source.revision) == (NAME, "abc123")


def test_inspect_takes_a_hub_id_of_the_cache(cli: Cli, hub: Path) -> None:
    found = cli("inspect", NAME, "--json").json
    assert (found["kind"], found["model_type"]) == ("checkpoint", "efficientnet-lite0")
    assert "neither a path nor in the hub's local cache" in cli.refused("inspect", "robots/none")


def test_a_directory_goes_before_a_hub_id(cli: Cli, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert "no config.json" in cli.refused("export", NAME, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("robots/none", "neither a directory nor in the hub's local cache, and the hub cannot be asked"),
        ("no/hub/id", "no/hub/id does not exist, and is no hub id"),
        ("tagger", "tagger does not exist, and is no hub id"),
        ("robots/a..b", "neither a directory nor in the hub's local cache"),
    ],
)
def test_neither_a_directory_nor_a_hub_id(cli: Cli, hub: Path, tmp_path: Path, name: str, words: str) -> None:
    assert words in cli.refused("export", name, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_exported_with_its_flag_alone(cli: Cli, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoint("vit"), tmp_path / "pickled")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    refused = cli.refused("export", path, "-o", tmp_path / "out")
    assert "only as a pickle" in refused
    assert "--allow-pickle" in refused
    ran = cli("export", path, "-o", tmp_path / "out", "--allow-pickle", "--json")
    assert ran.code == 0, ran.err
    assert (tmp_path / "out" / "edgemm.json").is_file()


def test_the_projects_own_checkpoint_is_found_from_inside_a_clone(monkeypatch, repository, tmp_path):
    monkeypatch.setattr(edgemm.export, "__file__", str(tmp_path / "site" / "edgemm" / "export" / "__init__.py"))
    monkeypatch.chdir(repository)
    assert samples() == repository / "samples"
    monkeypatch.chdir(tmp_path)
    assert samples() is None
