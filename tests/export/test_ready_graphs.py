"""Graphs that come as ONNX: as they are in fp32, with weights in half the bytes below."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgemm
from edgemm.export.pipeline import export
from edgemm.export.precision.weights import halved_constants
from tests.export.exported import RUNTIMES


def test_constants_are_halved_whoever_reads_them():
    rng = np.random.default_rng(0)
    inside, outside, large = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(3))
    large[0, 0] = 1e6
    nodes = [
        helper.make_node("Constant", [], ["inside"], value=numpy_helper.from_array(inside)),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2.0]))),
        helper.make_node("MatMul", ["x", "inside"], ["a"]),
        helper.make_node("MatMul", ["a", "outside"], ["b"]),
        helper.make_node("Mul", ["b", "two"], ["c"]),
        helper.make_node("MatMul", ["c", "large"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 64]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(outside, "outside"), numpy_helper.from_array(large, "large")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    half = halved_constants(model)

    onnx.checker.check_model(half)
    assert half.ByteSize() < model.ByteSize() * 0.7  # what fp16 cannot hold stays
    feeds = {"x": rng.standard_normal((3, 64)).astype(np.float32)}
    whole, halved = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (model, half))
    np.testing.assert_allclose(halved, whole, rtol=0, atol=2e-3 * np.abs(whole).max())
    assert not np.array_equal(halved, whole)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_voice_activity_in_half_the_bytes_hears_the_same(repository, tmp_path, runtime):
    source = repository / "samples/checkpoint/vad"
    bundles = {p: export(source, tmp_path / p, precision=p).bundle for p in ("fp32", "fp16")}
    files = {p: sum(f.stat().st_size for f in (b / "graphs").iterdir()) for p, b in bundles.items()}
    assert files["fp16"] < 0.6 * files["fp32"] == 0.6 * (source / "model.onnx").stat().st_size
    rng = np.random.default_rng(1)
    loudness = np.repeat(rng.uniform(0, 0.5, 100), 512)
    chunks = (rng.standard_normal(100 * 512) * loudness).astype(np.float32).reshape(-1, 512)
    heard = {}
    for precision, bundle in bundles.items():
        with edgemm.load(bundle, runtime=runtime) as model:
            voice = model.voice_activity()
            heard[precision] = np.array([voice.push(chunk) for chunk in chunks])
            assert {c.precision for c in model.bundle.manifest.components} == {precision}
    np.testing.assert_allclose(heard["fp16"], heard["fp32"], atol=0.02)
