"""Every component of every family against its module in torch, on every runtime, and whether each modality counts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from edgemm.export.verify import TOLERANCES, compare
from edgemm.runtimes import registry
from edgemm.runtimes.base import as_numpy
from tests.export.exported import EXACT, FAMILIES, RUNTIMES, exported, plan

# What a trained one does is told by its boxes (tests/tasks/test_detectors.py): its graphs are the random one's.
CASES = [(name, role) for name, tiny in FAMILIES.items() for role in tiny.components if name != "rt_detr_trained"]


def _graph(name, role):
    return next(g for g in plan(name).graphs if g.role == role)


@lru_cache(maxsize=8)
def _expected(name, role, seed):
    """Sizes, feeds and what the module makes of them: once for both runtimes, which take turns."""
    graph = _graph(name, role)
    sizes = (graph.trace, *graph.checks)[seed]
    feeds = graph.feeds(sizes, seed=100 + seed)
    return sizes, feeds, graph.run(feeds)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "role"), CASES, ids=lambda v: v)
def test_every_family_component_equals_its_module(name, role, runtime):
    graph = _graph(name, role)
    session = registry.module(runtime).load_session(exported(name).bundle / "graphs" / f"{role}.onnx", EXACT)
    for seed in range(1 + len(graph.checks)):
        sizes, feeds, expected = _expected(name, role, seed)
        found = session.run({k: v.numpy() for k, v in feeds.items()})
        worst, cosine = compare(expected, {k: as_numpy(v) for k, v in found.items()})
        assert worst <= TOLERANCES["fp32"].max_abs, sizes
        assert cosine >= TOLERANCES["fp32"].cosine, sizes
    session.close()


@pytest.mark.parametrize(("name", "role"), CASES, ids=lambda v: v)
def test_every_input_moves_the_output(name, role):
    """Another picture, another sound, another past: the first output changes by far more than the tolerance."""
    graph = _graph(name, role)
    session = registry.module("onnxruntime").load_session(exported(name).bundle / "graphs" / f"{role}.onnx", EXACT)
    feeds = {k: v.numpy() for k, v in graph.feeds(graph.trace).items()}
    first = next(iter(session.outputs))
    before = as_numpy(session.run(feeds)[first])
    rng = torch.Generator().manual_seed(7)
    for port in graph.inputs:
        if port.dtype.is_floating_point and "bias" not in port.name:
            # A spectrogram is normalised per bin first: two of the same noise are alike.
            loud = 20 if port.name == "input_features" else 1
            moved = feeds | {port.name: loud * torch.randn(feeds[port.name].shape, generator=rng).numpy()}
            after = as_numpy(session.run(moved)[first])
            assert np.abs(after - before).max() > 100 * TOLERANCES["fp32"].max_abs, port.name
    session.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_exported_whole(name):
    manifest = exported(name).manifest
    assert tuple(c.name for c in manifest.components) == FAMILIES[name].components
    assert {c.opset for c in manifest.components} == {20}
    assert {p.component for p in manifest.checks.parity} == set(FAMILIES[name].components)
    if plan(name).reference is not None:
        assert set(manifest.checks.tokens_equal.values()) <= {1.0}
        assert manifest.checks.tasks
