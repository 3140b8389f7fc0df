"""Every component of every family against its module in torch, on every runtime, at untraced sizes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch

from edgemm.export.verify import TOLERANCES, compare
from edgemm.runtimes import registry
from edgemm.runtimes.base import as_numpy
from tests.export.exported import EXACT, RUNTIMES, TINY, exported, plan

PAST_NEW = [(0, 1), (0, 7), (5, 1), (5, 3)]
BATCHES = [1, 3]
CASES = [(name, role) for name, tiny in TINY.items() for role in tiny.components]


def _sizes(name, role):
    """Sizes to check `role` of `name` at."""
    if role == "decoder":
        source = {"source": 9} if name in _SPEECH else {}
        return [
            {"batch": n, "past": p, "new": s, "total": p + s, "picks": k, **source}
            for n, (p, s) in product(BATCHES, PAST_NEW)
            for k in sorted({1, s})
        ]
    if role == "embed_tokens":
        return [{"batch": n, "new": s} for n, s in product(BATCHES, (1, 3, 7))]
    if role == "vision_encoder":
        return [{"tiles": n} for n in (1, 2, 3, 5)]
    if name == "moonshine":
        return [{"batch": n, "samples": s} for n, s in product(BATCHES, (1600, 4801, 20_000))]
    return [{"batch": n} for n in BATCHES]


_SPEECH = ("moonshine", "whisper", "whisper_en")


@dataclass
class Worst:
    """The largest difference and the least likeness over several runs."""

    max_abs: float = 0.0
    cosine: float = 1.0


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "role"), CASES, ids=lambda v: v)
def test_component_equals_its_module(name, role, runtime, record_property):
    bundle, graph = exported(name).bundle, next(g for g in plan(name).graphs if g.role == role)
    session = registry.module(runtime).load_session(bundle / "graphs" / f"{role}.onnx", EXACT)
    worst = Worst()
    for seed, sizes in enumerate(_sizes(name, role)):
        feeds = graph.feeds(sizes, seed=100 + seed)
        found = session.run({k: v.numpy() for k, v in feeds.items()})
        difference, likeness = compare(graph.run(feeds), {k: as_numpy(v) for k, v in found.items()})
        worst = Worst(max(worst.max_abs, difference), min(worst.cosine, likeness))
    session.close()
    record_property("max_abs", worst.max_abs)
    assert worst.max_abs <= TOLERANCES["fp32"].max_abs
    assert worst.cosine >= TOLERANCES["fp32"].cosine


@pytest.mark.parametrize("name", TINY)
def test_every_component_is_there(name):
    manifest = exported(name).manifest
    assert tuple(c.name for c in manifest.components) == TINY[name].components
    assert {c.opset for c in manifest.components} == {20}
    assert {p.component for p in manifest.checks.parity} == set(TINY[name].components)
    generates = name != "efficientnet"
    assert manifest.checks.tokens_equal == ({"main": 1.0} if generates else {})
    decoders = [c for c in manifest.components if c.role == "decoder"]
    for decoder in decoders:
        states = manifest.states_of(decoder.name)
        names = {t.name for t in decoder.inputs}
        assert len(states) == 4
        assert all(s.input in names and s.kind == "kv" and s.growth_axis == 2 for s in states)


def test_a_tied_table_is_stored_once():
    """The head's weight is the embedding's table: one of the two graphs points into the other's file."""
    tied, untied = exported("smolvlm_tied").manifest, exported("smolvlm").manifest
    table = next(c for c in tied.components if c.role == "embed_tokens")
    assert table.weights == ("graphs/decoder.data",)
    assert table.bytes < 2000
    saved = sum(f.bytes for f in untied.files.values()) - sum(f.bytes for f in tied.files.values())
    assert saved == pytest.approx(4 * table.parameters, rel=0.01)


def test_untied_tables_are_stored_apart():
    manifest = exported("smolvlm").manifest
    table = next(c for c in manifest.components if c.role == "embed_tokens")
    assert table.weights == ("graphs/embed_tokens.data",)


@pytest.mark.parametrize("name", ["moonshine", "whisper"])
def test_speech_tables_are_tied(name):
    table = next(c for c in exported(name).manifest.components if c.role == "embed_tokens")
    assert table.weights == ("graphs/decoder.data",)


@pytest.mark.parametrize("name", ["whisper", "smolvlm"])
def test_padding_at_the_left_changes_nothing(name):
    """A row with masked positions in front says what the row alone says."""
    graph = next(g for g in plan(name).graphs if g.role == "decoder")
    session = registry.module("onnxruntime").load_session(exported(name).bundle / "graphs" / "decoder.onnx", EXACT)
    source = {"source": 9} if name in _SPEECH else {}
    alone = graph.feeds({"batch": 1, "past": 0, "new": 4, "total": 4, "picks": 4, **source})
    padded = dict(alone)
    noise = torch.randn(1, 2, alone["inputs_embeds"].shape[2])
    padded["inputs_embeds"] = torch.cat([noise, alone["inputs_embeds"]], 1)
    padded["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1]])
    padded["position_ids"] = torch.tensor([[0, 0, 0, 1, 2, 3]])
    padded["logits_indices"] = torch.tensor([2, 3, 4, 5])
    runs = [session.run({k: v.numpy() for k, v in f.items()})["logits"] for f in (alone, padded)]
    worst, _ = compare({"logits": as_numpy(runs[0])}, {"logits": as_numpy(runs[1])})
    assert worst <= TOLERANCES["fp32"].max_abs
