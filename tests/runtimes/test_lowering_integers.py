"""Products of an encoder whose weights are in blocks as products of integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.export.precision.weights import quantize_blocks
from edgemm.runtimes import onnxruntime
from edgemm.runtimes.base import SessionOptions, as_numpy
from edgemm.runtimes.lowering import processor
from edgemm.runtimes.lowering.cache import lowered_encoder
from edgemm.runtimes.lowering.integers import columns

EXACT, FAST = SessionOptions(exact=True, int8_weights=True), SessionOptions(exact=False)
MOST_ERROR = 0.012
"""Of the rounding to columns; activations in one step of eight bits have 0.04 on such rows."""


@pytest.fixture
def integers(monkeypatch):
    monkeypatch.setattr(processor, "multiplies_bytes", lambda: True)


def saved(path, nodes, constants, x, y):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", x), ("y", y))]
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def blocked(path, rows, width):
    """x [..., rows] · an int8 matrix in blocks [rows, width], and the sum of what it makes and its bias."""
    rng = np.random.default_rng(rows + width)
    weight = quantize_blocks(rng.normal(0, 0.05, (rows, width)).astype(np.float32))
    constants = {"w": weight.values, "s": weight.scales, "b": rng.normal(0, 0.1, width).astype(np.float32)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw"], axis=0, block_size=weight.block),
        helper.make_node("MatMul", ["x", "dw"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    return saved(path, nodes, constants, ["n", "t", rows], ["n", "t", width])


def loud(shape, axis, seed=0):
    """Noise of which one channel is thirty times as loud."""
    x = np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)
    np.moveaxis(x, axis, 0)[1] *= 30
    return x


def error(path, x):
    """Of the lowered graph to the one that is computed exactly, relative to its size."""
    lowered = onnxruntime.load_session(path, FAST)
    assert (lowered.form, lowered.reason) == ("lowered", "")
    found, exact = (as_numpy(s.run({"x": x})["y"]) for s in (lowered, onnxruntime.load_session(path, EXACT)))
    assert found.shape == exact.shape
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def operators(path):
    return Counter(n.op_type for n in onnx.load(lowered_encoder(path).path, load_external_data=False).graph.node)


@pytest.mark.parametrize(("rows", "width"), [(48, 5), (80, 33), (288, 288), (1152, 7)])
@pytest.mark.parametrize("lines", [1, 7, 64])
def test_weights_in_blocks_keep_their_accuracy(tmp_path, integers, rows, width, lines):
    path = blocked(tmp_path / "g.onnx", rows, width)
    assert error(path, loud((2, lines, rows), 2)) < MOST_ERROR
    assert (operators(path)["MatMulIntegerToFloat"], operators(path)["MatMulNBits"]) == (2, 0)


def test_without_instructions_for_bytes_blocks_stay_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "multiplies_bytes", lambda: False)
    path = blocked(tmp_path / "g.onnx", 288, 64)
    assert error(path, loud((1, 9, 288), 2)) < 0.03
    assert (operators(path)["MatMulIntegerToFloat"], operators(path)["MatMulNBits"]) == (0, 1)


def test_silence_and_loud_rows_do_not_touch_others(tmp_path, integers):
    path, x = blocked(tmp_path / "g.onnx", 96, 40), loud((1, 5, 96), 2)
    session = onnxruntime.load_session(path, FAST)
    alone = as_numpy(session.run({"x": x[:, 2:3]})["y"])
    x[0, 0], x[0, 1] = 0, 1e6
    assert np.array_equal(as_numpy(session.run({"x": x})["y"])[:, 2:3], alone)


def test_columns_of_zeros_stay_zeros():
    values, steps = columns(np.array([[0, 1.0], [0, -2.0]], np.float32))
    assert values.tolist() == [[0, 64], [0, -127]]
    assert np.isfinite(steps).all()


@pytest.mark.parametrize(
    ("flags", "fast", "saturating"),
    [
        ("fpu avx2 avx512f", False, True),
        ("avx2 avx_vnni", True, False),
        ("avx512_vnni avx512f", True, False),
        ("avx512_vnni amx_tile amx_int8", True, False),
        ("", False, False),
    ],
)
def test_what_a_processor_has_is_read_from_its_flags(monkeypatch, flags, fast, saturating):
    monkeypatch.setattr(processor, "_flags", lambda: frozenset(flags.split()))
    assert (processor.multiplies_bytes(), processor.saturates()) == (fast, saturating)
