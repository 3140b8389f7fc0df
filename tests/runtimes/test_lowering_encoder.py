"""Lowered encoders of ONNX Runtime against the portable int8 graph and against fp32."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.precision import weights
from edgemm.export.precision.smooth import smooth
from edgemm.export.precision.weights import quantize_columns
from edgemm.runtimes import onnxruntime
from edgemm.runtimes.base import SessionOptions, as_numpy
from edgemm.runtimes.lowering import processor
from edgemm.runtimes.lowering.cache import lowered_encoder
from tests.export.exported import EXACT, exported, place, plan

FAST = SessionOptions(exact=False)
LEAST_COSINE = 0.998
ENCODERS = (
    ("whisper", "audio_encoder"),
    ("vit", "model"),
    ("smolvlm", "vision_encoder"),
    ("clip", "vision_encoder"),
    ("moonshine", "audio_encoder"),
    ("clip", "text_encoder"),
    ("bert", "text_encoder"),
)


@cache
def graph_of(name, role, precision="int8"):
    """The file of a graph; tiny matrices are quantized too."""
    graph = next(g for g in plan(name).graphs if g.role == role)
    if precision == "fp32" or graph.treatment == "static":
        return exported(name, precision).bundle / "graphs" / f"{role}.onnx"
    whole = onnx.load(graph_of(name, role, "fp32"))
    feeds = [feeds_of(name, role, number) for number in range(3)]
    path = place() / f"{name}-{role}-columns.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_MIN_WEIGHTS", 1)
        onnx.save(quantize_columns(smooth(whole, feeds, twins=True), graph.half_ops), path)
    return path


def feeds_of(name, role, number=0):
    """Inputs of one of the sizes that are checked, within the range of real ones."""
    graph = next(g for g in plan(name).graphs if g.role == role)
    sizes = (graph.trace, *graph.checks)
    feeds = graph.feeds(sizes[number % len(sizes)], seed=7)
    return {k: v.numpy() * 0.2 if v.is_floating_point() else v.numpy() for k, v in feeds.items()}


def run(session, feeds):
    return {k: as_numpy(v) for k, v in session.run(feeds).items()}


def cosine(found, expected):
    """The least of all outputs."""
    pairs = [(found[k].astype(np.float64).ravel(), expected[k].astype(np.float64).ravel()) for k in expected]
    return min(float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in pairs)


def lowered_path(path):
    return lowered_encoder(path).path


def operators(path):
    return Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize(("name", "role"), ENCODERS)
def test_lowered_is_as_near_to_fp32_as_the_portable_graph(name, role):
    path = graph_of(name, role)
    portable, lowered = (onnxruntime.load_session(path, options) for options in (EXACT, FAST))
    whole = onnxruntime.load_session(graph_of(name, role, "fp32"), EXACT)
    assert (portable.form, lowered.form, lowered.reason) == ("portable", "lowered", "")
    assert {n: p.shape for n, p in lowered.inputs.items()} == {n: p.shape for n, p in portable.inputs.items()}
    assert list(lowered.outputs) == list(portable.outputs)
    for number in range(3):
        feeds = feeds_of(name, role, number)
        found, before, original = (run(session, feeds) for session in (lowered, portable, whole))
        assert cosine(found, original) >= min(LEAST_COSINE, cosine(before, original) - 1e-3)


def test_calibrated_activations_become_the_same_integers():
    path, feeds = graph_of("whisper", "audio_encoder"), feeds_of("whisper", "audio_encoder")
    found, before = (run(onnxruntime.load_session(path, options), feeds) for options in (FAST, EXACT))
    assert cosine(found, before) > 1 - 1e-6


@pytest.mark.parametrize(("name", "role"), ENCODERS)
def test_every_int8_product_is_one_of_integers(name, role):
    before, after = operators(graph_of(name, role)), operators(lowered_encoder(graph_of(name, role)).path)
    assert after["MatMulIntegerToFloat"] >= 4
    assert after["DequantizeLinear"] <= after["Conv"]
    assert after["MultiHeadAttention"] == before["Softmax"]


def test_what_is_masked_changes_nothing():
    lowered = onnxruntime.load_session(graph_of("bert", "text_encoder"), FAST)
    ids, mask = np.array([[5, 9, 12, 7], [30, 3, 3, 8]]), np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    together = run(lowered, {"input_ids": ids, "attention_mask": mask})["text_features"]
    alone = run(lowered, {"input_ids": ids[:1, :2], "attention_mask": mask[:1, :2]})["text_features"]
    assert np.allclose(together[:1], alone, atol=1e-5)


def test_rotary_embeddings_and_doubled_norms_become_one_operator():
    sound, found = (operators(f(graph_of("moonshine", "audio_encoder"))) for f in (lambda p: p, lowered_path))
    assert found["RotaryEmbedding"] == 2 * sound["Softmax"]
    assert found["Neg"] == found["Sin"] - 1 == 0
    words, found = (operators(f(graph_of("bert", "text_encoder"))) for f in (lambda p: p, lowered_path))
    assert found["LayerNormalization"] < words["LayerNormalization"]


def test_a_processor_that_saturates_computes_the_same(monkeypatch):
    """With unsigned weights, which ONNX Runtime makes of the signed ones there."""
    path, feeds = graph_of("bert", "text_encoder"), feeds_of("bert", "text_encoder")
    expected = run(onnxruntime.load_session(path, FAST), feeds)
    monkeypatch.setattr(processor, "saturates", lambda: True)
    found = run(onnxruntime.load_session(path, FAST), feeds)
    assert cosine(found, expected) > 1 - 1e-6


def test_rows_do_not_depend_on_their_neighbours():
    lowered = onnxruntime.load_session(graph_of("bert", "text_encoder"), FAST)
    ids = np.array([[5, 9, 12, 7], [30, 3, 3, 8]])
    mask = np.ones_like(ids)
    together = run(lowered, {"input_ids": ids, "attention_mask": mask})["text_features"]
    alone = run(lowered, {"input_ids": ids[:1], "attention_mask": mask[:1]})["text_features"]
    assert np.allclose(together[:1], alone, atol=1e-5)


def test_convolutions_are_computed_in_floating_point():
    path, feeds = graph_of("efficientnet", "model"), feeds_of("efficientnet", "model")
    lowered, portable = (onnxruntime.load_session(path, o) for o in (FAST, EXACT))
    whole = run(onnxruntime.load_session(graph_of("efficientnet", "model", "fp32"), EXACT), feeds)
    assert lowered.form == "lowered"
    found = operators(lowered_encoder(path).path)
    assert found["Conv"] > found["DequantizeLinear"] > found["QuantizeLinear"] == 1
    assert cosine(run(lowered, feeds), whole) >= cosine(run(portable, feeds), whole)


def test_what_is_not_int8_stays_as_it_is():
    session = onnxruntime.load_session(graph_of("vit", "model", "fp32"), FAST)
    assert session.form == "portable"
    assert "nothing in it is int8" in session.reason


def test_a_lowered_graph_is_made_once():
    path = graph_of("vit", "model")
    first = lowered_encoder(path).path
    stamp = first.stat().st_mtime_ns
    assert lowered_encoder(path).path == first
    assert first.stat().st_mtime_ns == stamp


def test_a_product_without_its_form_is_left_alone(tmp_path):
    """A scale a row instead of a column, and a shifted activation: neither is what the integer product computes."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (8, 6)).astype(np.int8)
    constants = {
        "w": weight, "rows": rng.uniform(0.01, 0.02, 8).astype(np.float32), "column": np.full(6, 0.02, np.float32),
        "step": np.float32(0.05), "shift": np.int8(3), "w2": rng.integers(-127, 128, (6, 6)).astype(np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "rows"], ["dw"], axis=0),
        helper.make_node("MatMul", ["x", "dw"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "step", "shift"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "shift"], ["d"]),
        helper.make_node("DequantizeLinear", ["w2", "column"], ["dw2"], axis=1),
        helper.make_node("MatMul", ["d", "dw2"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", 8), ("y", 6))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    x = {"x": rng.normal(0, 1, (5, 8)).astype(np.float32)}
    lowered = onnxruntime.load_session(tmp_path / "g.onnx", FAST)
    found = operators(lowered_encoder(tmp_path / "g.onnx").path)
    assert (found["MatMul"], found["MatMulIntegerToFloat"]) == (1, 1)
    portable = onnxruntime.load_session(tmp_path / "g.onnx", EXACT)
    assert cosine(run(lowered, x), run(portable, x)) > 0.999


def test_without_a_place_to_keep_it_the_numbers_are_the_exact_ones(tmp_path, monkeypatch):
    path, feeds = graph_of("bert", "text_encoder"), feeds_of("bert", "text_encoder")
    exact = run(onnxruntime.load_session(path, replace(EXACT, int8_weights=True)), feeds)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    session = onnxruntime.load_session(path, replace(FAST, int8_weights=True))
    assert session.form == "portable"
    assert "cannot be kept" in session.reason
    found = run(session, feeds)
    assert all(np.array_equal(found[k], exact[k]) for k in exact)
