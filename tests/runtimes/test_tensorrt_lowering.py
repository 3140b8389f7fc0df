"""The graph that TensorRT is given: the same numbers, and nothing in it that cannot be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.runtimes.lowering.lints import findings
from edgemm.runtimes.lowering.tensorrt import halved, lower
from tests.export.exported import exported

LAST_POSITION = 4_001


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(exported("smolvlm", "int8").bundle)


def _graph(bundle: Bundle, component: str) -> onnx.ModelProto:
    return onnx.load(bundle.file(bundle.manifest.component(component).file))


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    return list(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds))


def test_activations_leave_int8_and_weights_stay(bundle: Bundle) -> None:
    before = _graph(bundle, "vision_encoder")
    weights = {t.name for t in before.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1}
    assert any(n.op_type == "QuantizeLinear" for n in before.graph.node)
    pixels = np.random.default_rng(0).normal(0, 0.5, (1, 3, 24, 24)).astype(np.float32)
    size = [d.dim_value or 1 for d in before.graph.input[0].type.tensor_type.shape.dim]
    feeds = {before.graph.input[0].name: np.resize(pixels, size)}
    want = _run(before, feeds)[0]
    after = lower(before)
    assert not any(n.op_type == "QuantizeLinear" for n in after.graph.node)
    assert weights <= {t.name for t in after.graph.initializer}
    found = _run(after, feeds)[0]
    # Noise leaves the calibrated ranges, so the two differ more than on pictures: the floating-point original decides.
    original = _run(_graph(open_bundle(exported("smolvlm").bundle), "vision_encoder"), feeds)[0]
    assert np.abs(found - original).max() < np.abs(want - original).max()
    assert np.corrcoef(found.ravel(), original.ravel())[0, 1] > 0.998


def test_activations_stay_int8_where_that_is_asked_for(bundle: Bundle) -> None:
    before = _graph(bundle, "vision_encoder")
    quantized = sum(n.op_type == "QuantizeLinear" for n in before.graph.node)
    size = [d.dim_value or 1 for d in before.graph.input[0].type.tensor_type.shape.dim]
    pixels = np.random.default_rng(0).normal(0, 0.5, size).astype(np.float32)
    name = before.graph.input[0].name
    want = _run(before, {name: pixels})[0]
    after = halved(lower(before, activations=True))
    assert sum(n.op_type == "QuantizeLinear" for n in after.graph.node) == quantized > 0
    assert findings(after) == []
    found = _run(after, {name: pixels.astype(np.float16)})[0].astype(np.float32)
    assert np.corrcoef(found.ravel(), want.ravel())[0, 1] > 0.995


def test_rows_of_a_dequantized_table_are_the_same(bundle: Bundle) -> None:
    model = _graph(bundle, "embed_tokens")
    ids = {"input_ids": np.array([[0, 3, 441, 7]])}
    want = _run(model, ids)[0]
    lowered = lower(model)
    integer = {t.name for t in lowered.graph.initializer if t.data_type == TensorProto.INT8}
    readers = {n.op_type for n in lowered.graph.node for name in n.input if name in integer}
    assert readers == {"DequantizeLinear"}
    np.testing.assert_allclose(_run(lowered, ids)[0], want, rtol=1e-6)


def test_halved_angles_are_right_at_late_positions() -> None:
    frequencies = numpy_helper.from_array((1.0 / 10_000 ** (np.arange(8) / 8)).astype(np.float32), "inv_freq")
    factor = numpy_helper.from_array(np.array(2.0, np.float32), "factor")
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["position"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["position", "inv_freq"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cos"]),
        helper.make_node("Mul", ["cos", "factor"], ["out"]),
    ]
    ids = helper.make_tensor_value_info("position_ids", TensorProto.INT64, [None, 1])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 8])
    graph = helper.make_graph(nodes, "rotary", [ids], [out], [frequencies, factor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feeds = {"position_ids": np.array([[LAST_POSITION]])}
    want = _run(model, feeds)[0]
    found = _run(halved(model), feeds)[0]
    assert found.dtype == np.float16
    assert np.abs(found.astype(np.float32) - want).max() < 2e-3


def test_masks_stay_finite_in_half() -> None:
    least = numpy_helper.from_array(np.array(np.finfo(np.float32).min), "least")
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Where", ["mask", "zero", "least"], ["out"])], "m", [mask], [out])
    graph.initializer.extend([zero, least])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = _run(halved(model), {"mask": np.array([True, False])})[0]
    assert found.tolist() == [0.0, float(np.finfo(np.float16).min)]


def _node(operator: str, inputs: int = 1, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    names = [f"i{k}" for k in range(inputs)], [f"o{k}" for k in range(outputs)]
    return helper.make_node(operator, *names, name=f"the_{operator}", **attributes)


INT8_ZERO = numpy_helper.from_array(np.array(3, np.int8), "i2")
UINT8_ZERO = numpy_helper.from_array(np.array(0, np.uint8), "i2")
BIAS = numpy_helper.from_array(np.zeros(4, np.int32), "i0")
WEIGHT = numpy_helper.from_array(np.zeros((4, 4), np.float32), "i1")
REFUSED: dict[str, tuple[onnx.NodeProto, tuple[Any, ...]]] = {
    "NonZero": (_node("NonZero"), ()),
    "NonMaxSuppression": (_node("NonMaxSuppression", 2), ()),
    "Resize with antialias": (_node("Resize", 4, antialias=1), ()),
    "DFT": (_node("DFT"), ()),
    "MelWeightMatrix": (_node("MelWeightMatrix", 5), ()),
    "Unique": (_node("Unique"), ()),
    "DeformConv": (_node("DeformConv", 3), ()),
    "DynamicQuantizeLinear": (_node("DynamicQuantizeLinear", 1, 3), ()),
    "MatMulInteger": (_node("MatMulInteger", 2), ()),
    "an asymmetric zero": (_node("QuantizeLinear", 3), (INT8_ZERO,)),
    "an unsigned zero": (_node("DequantizeLinear", 3), (UINT8_ZERO,)),
    "a quantized bias": (_node("DequantizeLinear", 2), (BIAS,)),
    "Attention with a cache": (_node("Attention", 3, 3), ()),
    "Attention with lengths": (_node("Attention", 7), ()),
    "TensorScatter in a circle": (_node("TensorScatter", 3, mode="circular"), ()),
    "fp32 for sm75": (_node("MatMul", 2), (WEIGHT,)),
    "an operator of Microsoft's": (_node("MatMulNBits", 2, domain="com.microsoft"), ()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_named(case: str) -> None:
    node, weights = REFUSED[case]
    model = helper.make_model(helper.make_graph([_node("Relu"), node], "g", [], [], weights))
    (found,) = findings(model, ("sm75", "sm89"))
    assert found.node == node.name
    assert node.op_type in found.operator
    assert found.reason
    assert found.mend
    assert node.name in str(found)


ADMITTED = (
    _node("Resize", 4),
    _node("QuantizeLinear", 2),
    _node("DequantizeLinear", 2),
    _node("Attention", 4),
    _node("TensorScatter", 3, mode="linear"),
    _node("MatMul", 2),
)


@pytest.mark.parametrize("node", ADMITTED, ids=lambda n: n.op_type)
def test_what_can_be_built_is_not_named(node: onnx.NodeProto) -> None:
    model = helper.make_model(helper.make_graph([node], "g", [], [], [WEIGHT]))
    assert findings(model, ("sm86",)) == []


def test_no_graph_of_a_bundle_is_named(bundle: Bundle, tmp_path: Path) -> None:
    for component in bundle.manifest.components:
        assert findings(lower(_graph(bundle, component.name)), ("sm86", "sm120")) == []
