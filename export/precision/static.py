"""Static int8 for encoders: explicit QDQ, symmetric, one artifact for every runtime.

Weights per output channel, activations per tensor, zero points 0, only MatMul, Gemm and Conv with constant weights,
and no quantized bias: the form that ONNX Runtime, OpenVINO and TensorRT all read and run as int8. Only what goes
into an operator is quantized; norms, additions, softmax and attention's own products stay in floating point. The ranges
come from real examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgemm.errors import CheckpointError
from edgemm.export.precision.ranges import Feeds, Known, clip_limits
from edgemm.export.precision.recipe import AS_USUAL, Recipe, key
from edgemm.export.precision.smooth import smooth
from edgemm.export.precision.weights import dequantized_channels, halved_weight, keep_used

_OPERATORS = ("MatMul", "Gemm", "Conv")


def quantize_static_int8(
    model: onnx.ModelProto,
    examples: Sequence[Feeds],
    *,
    half_ops: tuple[str, ...] = (),
    float_modules: tuple[str, ...] = (),
    recipe: Recipe = AS_USUAL,
    known: Known | None = None,
) -> onnx.ModelProto:
    """Insert Q/DQ pairs with ranges from `examples` (feeds by input name), or those that are `known` already.

    Operators in `half_ops`, in the submodules `float_modules` and among those that `recipe` restores get fp16 weights
    instead. Raises CheckpointError without examples.
    """
    if not examples:
        raise CheckpointError(
            f"{model.graph.name} needs examples for int8",
            hint="add --calib PATH (pictures or sound)",
        )
    known = known or Known()
    out = smoothed(model, examples, recipe, known)
    graph = out.graph
    weights = {t.name: t for t in graph.initializer}
    chosen = [n for n in graph.node if n.op_type in _OPERATORS and n.input[1] in weights]
    rounded = [n for n in stored_in_int8(graph, weights, half_ops, float_modules) if key(n) not in recipe.restored]
    stored = {id(n) for n in rounded}
    halved = {id(n) for n in chosen} - stored
    names = list(dict.fromkeys(n.input[0] for n in rounded))
    limits = known.limits.setdefault((recipe.smooth, recipe.method), {})
    limits |= clip_limits(out, [n for n in names if n not in limits], examples, recipe.method)
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if id(node) in stored:
            nodes += _activation(graph, node, limits[node.input[0]], done)
            nodes += dequantized_channels(graph, node, weights[node.input[1]], done)
        elif id(node) in halved:
            nodes += halved_weight(graph, node, weights[node.input[1]], done)
        nodes.append(node)
    keep_used(graph, nodes)
    return out


def stored_in_int8(
    graph: onnx.GraphProto,
    weights: Mapping[str, onnx.TensorProto],
    half_ops: tuple[str, ...],
    float_modules: tuple[str, ...],
) -> list[onnx.NodeProto]:
    """The operators whose weights become int8, where none is restored."""
    chosen = [n for n in graph.node if n.op_type in _OPERATORS and n.input[1] in weights]
    return [n for n in chosen if n.op_type not in half_ops and not n.name.startswith(float_modules)]


def smoothed(
    model: onnx.ModelProto, examples: Sequence[Feeds], recipe: Recipe, known: Known | None = None
) -> onnx.ModelProto:
    """What the Q/DQ pairs are put into: a copy of `model`, smoothed where `recipe` says so."""
    if recipe.smooth:
        return smooth(model, examples, known=known)
    out = onnx.ModelProto()
    out.CopyFrom(model)
    return out


def _activation(graph: onnx.GraphProto, node: onnx.NodeProto, limit: float, done: set[str]) -> list[onnx.NodeProto]:
    name = node.input[0]
    scale, zero = f"{name}.scale", f"{name}.zero"
    stored, restored = f"{name}.int8", f"{name}.dequantized"
    node.input[0] = restored
    if name in done:
        return []
    done.add(name)
    graph.initializer.append(numpy_helper.from_array(np.float32(limit / 127), scale))
    graph.initializer.append(numpy_helper.from_array(np.int8(0), zero))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [stored], name=stored),
        helper.make_node("DequantizeLinear", [stored, scale, zero], [restored], name=restored),
    ]
