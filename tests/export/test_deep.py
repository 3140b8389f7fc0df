"""Checkpoints that are compared by two layers and by the hash of every weight: as those that are compared whole."""

from __future__ import annotations

import json

import pytest

from edgemm.errors import CheckFailed, CheckpointError
from edgemm.export import deep, pipeline
from edgemm.export.checkpoint import find_checkpoint
from edgemm.measure.reporting import export_document
from tests.export.exported import checkpoint, exported

NAMES = ["qwen2_5_vl", "gemma3", "whisper"]


def export_deep(monkeypatch, path, target, **more):
    monkeypatch.setattr(deep, "is_deep", lambda found: found.path == path)
    return pipeline.export(path, target, **more)


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_what_an_export_in_memory_writes(name, monkeypatch, tmp_path):
    report = export_deep(monkeypatch, checkpoint(name), tmp_path / "bundle")
    whole = exported(name).manifest
    assert {c.name: c.sha256 for c in report.manifest.components} == {c.name: c.sha256 for c in whole.components}
    assert report.manifest.files == whole.files
    assert report.manifest.checks.layers == 2
    assert report.manifest.checks.weights_equal > 20
    assert {p.component for p in report.manifest.checks.parity} == {p.component for p in whole.checks.parity}
    assert report.manifest.checks.tokens_equal == {"main": 1.0}
    assert export_document(report)["tokens_equal"] == {"main": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_layer_of_each_kind_stays(tmp_path):
    small = deep.shallow(find_checkpoint(checkpoint("gemma3")), tmp_path / "small")
    config = json.loads((small / "config.json").read_text())["text_config"]
    assert config["num_hidden_layers"] == 2
    assert len(set(config["layer_types"])) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight * 1.01,
        pytest.param(lambda weight: -weight, marks=pytest.mark.slow),
        pytest.param(lambda weight: weight[::-1], marks=pytest.mark.slow),
    ],
    ids=["scaled", "negated", "turned"],
)
def test_a_weight_that_did_not_arrive_is_an_error(change, monkeypatch, tmp_path):
    tensors = deep._tensors

    def others(checkpoint):
        for name, values in tensors(checkpoint):
            yield name, change(values) if name.endswith("layers.2.mlp.up_proj.weight") else values

    monkeypatch.setattr(deep, "_tensors", others)
    with pytest.raises(CheckFailed, match=r"1 weights left out: .*layers\.2\.mlp\.up_proj"):
        export_deep(monkeypatch, checkpoint("qwen2_5_vl"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_quantizing_it_says_how_much_memory_it_takes(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="too many to quantize") as caught:
        export_deep(monkeypatch, checkpoint("smolvlm"), tmp_path / "bundle", precision="fp16")
    assert "--fp16" in caught.value.hint


def test_by_the_memory_that_is_free(monkeypatch):
    class Memory:
        available = 20_000_000_000

    monkeypatch.setattr(deep.psutil, "virtual_memory", Memory)
    for parameters, expected in ((100_000_000, False), (2_000_000_000, False), (3_700_000_000, True)):
        assert deep.is_deep(type("Found", (), {"parameters": parameters})) is expected
