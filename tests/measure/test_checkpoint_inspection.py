"""What `inspect` says of a checkpoint, against what it holds and what export makes of it."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from edgemm.bundle.opening import open_bundle
from edgemm.measure.inspection import inspect
from edgemm.model import default_bundle_path
from tests.export.exported import FAMILIES, TINY, checkpoint

# Which graphs these become hangs on more than the weights' names.
OPEN = {"blip_vqa", "dinov2", "dinov2_features"}


@pytest.mark.parametrize("name", TINY | FAMILIES)
def test_the_graphs_named_are_those_that_export_makes(name):
    found = inspect(checkpoint(name))
    named = {graph for component in found.components for graph in component.graphs}
    made = set((TINY | FAMILIES)[name].components)
    assert named <= made if name in OPEN else named == made
    assert found.problems == ()


def test_a_sharded_checkpoint_reads_as_the_whole_one(tmp_path):
    whole = checkpoint("smolvlm")
    shards = shutil.copytree(whole, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForImageTextToText.from_pretrained(whole, dtype=torch.float32).save_pretrained(
        shards, max_shard_size="100KB"
    )
    assert len(list(shards.glob("*.safetensors"))) > 2
    wanted, found = inspect(whole), inspect(shards)
    assert found.components == wanted.components
    assert found.bytes_per_precision == wanted.bytes_per_precision
    assert found.problems == ()


def test_a_pickle_is_sized_without_being_read(tmp_path):
    whole = checkpoint("vit")
    pickled = shutil.copytree(whole, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(whole / "model.safetensors"), pickled / "pytorch_model.bin")
    wanted, found = inspect(whole), inspect(pickled)
    (problem,) = found.problems
    assert "pytorch_model.bin" in problem
    assert "--allow-pickle" in problem
    # Its own directory of names is counted as weights: kilobytes.
    assert 0 <= found.parameters - wanted.parameters < 8192


def test_sizes_by_precision_are_those_of_the_bundle(repository):
    """The project's own: int8 as it stands in the default bundle, within a tenth."""
    guessed = inspect(repository / "samples" / "checkpoint").bytes_per_precision["int8"]
    made = sum(c.bytes for c in open_bundle(default_bundle_path()).manifest.components)
    assert guessed == pytest.approx(made, rel=0.1)
