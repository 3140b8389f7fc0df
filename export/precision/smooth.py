"""SmoothQuant: move the outliers of activations into the weights that follow (Xiao et al., arXiv 2211.10438).

Where a LayerNormalization feeds nothing but matrices, its scale and bias are divided by a factor per channel and the
matrices' rows multiplied by it. Where it feeds others too, as it does where norms follow the sums, a twin of it may
feed the matrices. The graph computes what it did; its activations are easier to quantize.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemm.export.precision.ranges import Feeds, Known, channel_maxima

ALPHA = 0.4
TWIN_ALPHA = 0.5
"""What MiniLM and its likes lose least with (docs/PERFORMANCE.md)."""


def smooth(
    model: onnx.ModelProto,
    examples: Sequence[Feeds],
    alpha: float = ALPHA,
    *,
    twins: bool = False,
    known: Known | None = None,
) -> onnx.ModelProto:
    """A smoothed copy of `model`; the activations of `examples`, or what is `known` of them, decide the factors.

    With `twins` norms that feed more than matrices are doubled.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    if twins:
        _double(out.graph)
    weights = {t.name: t for t in out.graph.initializer}
    sites = _sites(out.graph, weights)
    peaks = {} if known is None else known.maxima
    wanted = [norm.output[0] for norm, _ in sites if norm.output[0] not in peaks]
    peaks |= channel_maxima(out, wanted, examples) if wanted else {}
    for norm, matrices in sites:
        factors = _factors(peaks[norm.output[0]], [_array(weights[m]) for m in matrices], alpha)
        for name in norm.input[1:]:
            _set(weights[name], _array(weights[name]) / factors)
        for name in matrices:
            _set(weights[name], _array(weights[name]) * factors[:, None])
    return out


def _double(graph: onnx.GraphProto) -> None:
    """Give the matrices behind a norm that has other readers a norm of their own."""
    tensors = {t.name: t for t in graph.initializer}
    outputs = {o.name for o in graph.output}
    nodes: list[onnx.NodeProto] = []
    twins: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[0] in twins and node.input[1] in tensors:
            node.input[0] = twins[node.input[0]]
        nodes.append(node)
        if node.op_type != "LayerNormalization" or any(i not in tensors for i in node.input[1:]):
            continue
        name = node.output[0]
        readers = [(n.op_type == "MatMul" and n.input[1] in tensors) for n in graph.node if name in n.input]
        if any(readers) and (not all(readers) or name in outputs):
            twins[name] = f"{name}.smooth"
            nodes.append(_twin(graph, node, tensors, twins[name]))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _twin(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], output: str
) -> onnx.NodeProto:
    twin = onnx.NodeProto.FromString(node.SerializeToString())
    twin.name = twin.output[0] = output
    for position, name in enumerate(node.input[1:], 1):
        twin.input[position] = f"{output}.{position}"
        graph.initializer.append(numpy_helper.from_array(_array(tensors[name]), twin.input[position]))
    return twin


def _sites(graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]) -> list[tuple[onnx.NodeProto, list[str]]]:
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    sites = []
    for node in graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        users = consumers.get(node.output[0], [])
        matrices = list(dict.fromkeys(u.input[1] for u in users if u.op_type == "MatMul"))
        owned = all(len(consumers[name]) == 1 for name in (*node.input[1:], *matrices))
        constant = all(name in weights for name in (*node.input[1:], *matrices))
        if users and owned and constant and all(u.op_type == "MatMul" for u in users):
            sites.append((node, matrices))
    return sites


def _factors(peaks: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]], alpha: float) -> NDArray[np.float32]:
    rows = np.max([np.abs(m).max(1) for m in matrices], axis=0)
    factors: NDArray[np.float32] = np.maximum(peaks, 1e-5) ** alpha / np.maximum(rows, 1e-5) ** (1 - alpha)
    return factors.clip(1e-3, 1e3)


def _array(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    array: NDArray[np.float32] = numpy_helper.to_array(tensor)
    return array


def _set(tensor: onnx.TensorProto, values: NDArray[np.float32]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
