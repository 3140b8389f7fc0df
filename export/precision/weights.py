"""Weight-only int8: symmetric, blocks of up to 128 inputs, for decoders, embeddings and heads.

A constant weight W [inputs, outputs] of a MatMul or Gemm becomes int8 [inputs, outputs] with a scale per block and
output, and a DequantizeLinear before its consumer (opset 21). ONNX Runtime fuses that pair into one operator that reads
the int8 weight; OpenVINO and TensorRT read the same nodes. An embedding table in the head's layout is read by Gather
from the same int8 tensor, so that a tied table stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgemm.export.precision.recipe import key
from edgemm.runtimes.lowering.graph import packed

BLOCKS = (128, 64, 32, 16)
"""Block sizes that every runtime takes, the fastest first."""

BLOCKED_OPSET = 21
_MIN_WEIGHTS = 4096
_MOST_FP16 = 65504.0
_READS = {"MatMul": 1, "Gemm": 1, "Gather": 0}
"""Operators of matrices, and which of their inputs that is."""


@dataclass(frozen=True)
class BlockedWeight:
    """Integers [K, N] of `bits`, held in int8, and their scales [K / block, N]; `block` divides K."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    block: int
    bits: int = 8


def quantize_blocks(weight: NDArray[np.float32]) -> BlockedWeight:
    """Round `weight` [K, N] to symmetric int8 with one scale per block of rows and column.

    The block is the first of `BLOCKS` that divides K, else the largest divisor of K that is less than all of them.
    """
    rows, columns = weight.shape
    size = block_of_int8(rows)
    grouped = weight.reshape(rows // size, size, columns)
    values, scales = _nearest(grouped, 1)
    return BlockedWeight(values.reshape(rows, columns), scales[:, 0], size)


def block_of_int8(rows: int) -> int:
    """The block size for a matrix of so many inputs."""
    size: int = next(b for b in (*BLOCKS, *range(min(BLOCKS), 0, -1)) if rows % b == 0)
    return size


def _nearest(array: NDArray[np.float32], axes: int | tuple[int, ...]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 and its steps, one for all that lies along `axes`, which the steps keep with length 1."""
    scales = np.abs(array).max(axes, keepdims=True) / 127
    scales = np.where(scales == 0, 1.0, scales).astype(np.float32)
    return np.clip(np.rint(array / scales), -127, 127).astype(np.int8), scales


def quantize_weights(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...] = (),
    restored: frozenset[str] = frozenset(),
    rounded: Mapping[str, BlockedWeight] | None = None,
) -> onnx.ModelProto:
    """Replace the constant matrices of MatMul, Gemm and the embedding's Gather by blocked int8.

    Weights of operators in `half_ops` are stored in fp16, and so are those of the operators `restored` (by `key`);
    those in `rounded`, by name, as they were rounded already.
    """
    out = _stored(model, half_ops, restored, rounded or {}, constant_matrix, _quantized_gather, _quantized_matmul)
    _raise_opset(out, BLOCKED_OPSET)
    return out


def quantize_columns(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...] = (),
    restored: frozenset[str] = frozenset(),
    rounded: Mapping[str, BlockedWeight] | None = None,
) -> onnx.ModelProto:
    """Replace the constant matrices of MatMul and Gemm by int8 per output channel, and tables by int8 per row.

    An integer product needs one scale a column; the rest as in `quantize_weights`.
    """
    return _stored(model, half_ops, restored, rounded or {}, whole_matrix, _gathered_rows, _dequantized_product)


def _stored(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...],
    restored: frozenset[str],
    rounded: Mapping[str, BlockedWeight],
    matrix_of: Callable[[onnx.NodeProto, Mapping[str, onnx.TensorProto]], str | None],
    table: Callable[[onnx.GraphProto, onnx.NodeProto, onnx.TensorProto, set[str]], list[onnx.NodeProto]],
    product: Callable[
        [onnx.GraphProto, onnx.NodeProto, onnx.TensorProto, set[str], BlockedWeight | None], list[onnx.NodeProto]
    ],
) -> onnx.ModelProto:
    """A copy of `model`; `table` and `product` make the nodes that stand for an operator that reads a matrix."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    weights = {t.name: t for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        name = matrix_of(node, weights)
        if node.op_type in half_ops and node.input[1] in weights:
            nodes += [*halved_weight(graph, node, weights[node.input[1]], done), node]
        elif name is not None and key(node) in restored:
            nodes += [*halved_weight(graph, node, weights[name], done), node]
        elif name is None:
            nodes.append(node)
        elif node.op_type == "Gather":
            nodes += table(graph, node, weights[name], done)
        else:
            nodes += product(graph, node, weights[name], done, rounded.get(name))
    keep_used(graph, nodes)
    return out


def whole_matrix(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> str | None:
    """The name of the matrix that `node` multiplies by, or looks up rows of; turned ones too."""
    position = _READS.get(node.op_type)
    tensor = weights.get(node.input[position]) if position is not None else None
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    of_columns = node.op_type == "Gather" and any(a.name == "axis" and a.i for a in node.attribute)
    return None if of_columns or np.prod(tensor.dims) < _MIN_WEIGHTS else str(tensor.name)


def _dequantized_product(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    tensor: onnx.TensorProto,
    done: set[str],
    rounded: BlockedWeight | None,
) -> list[onnx.NodeProto]:
    return [*dequantized_channels(graph, node, tensor, done, rounded), node]


def _gathered_rows(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TensorProto, done: set[str]
) -> list[onnx.NodeProto]:
    """Gather int8 rows and their scales, and multiply."""
    values, scales = f"{tensor.name}.rows", f"{tensor.name}.row_scales"
    if tensor.name not in done:
        done.add(tensor.name)
        rows, steps = _nearest(numpy_helper.to_array(tensor), 1)
        graph.initializer.append(numpy_helper.from_array(rows, values))
        graph.initializer.append(numpy_helper.from_array(steps, scales))
    name, ids = node.output[0], node.input[1]
    return [
        helper.make_node("Gather", [values, ids], [f"{name}.int8"], axis=0),
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [scales, ids], [f"{name}.scales"], axis=0),
        helper.make_node("Mul", [f"{name}.cast", f"{name}.scales"], [name]),
    ]


def constant_matrix(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> str | None:
    """The name of the matrix that `node` multiplies by or looks up in, where blocks of it can be stored."""
    position = _READS.get(node.op_type)
    if position is None:
        return None
    tensor = weights.get(node.input[position])
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    if tensor is None or len(tensor.dims) != 2 or tensor.data_type not in floats:
        return None
    transposed = any(a.name in ("transA", "transB") and a.i for a in node.attribute)
    wrong_axis = node.op_type == "Gather" and not any(a.name == "axis" and a.i == 1 for a in node.attribute)
    small = np.prod(tensor.dims) < _MIN_WEIGHTS
    return None if transposed or wrong_axis or small else node.input[position]


def _store(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, done: set[str], rounded: BlockedWeight | None = None
) -> tuple[str, str, int]:
    array = numpy_helper.to_array(tensor)
    weight = rounded or quantize_blocks(array.astype(np.float32))
    values, scales = f"{tensor.name}.int{weight.bits}", f"{tensor.name}.scale"
    if tensor.name not in done:
        stored = numpy_helper.from_array(weight.values, values)
        graph.initializer.append(_packed(weight.values, values) if weight.bits == 4 else stored)
        graph.initializer.append(numpy_helper.from_array(weight.scales.astype(array.dtype), scales))
        done.add(tensor.name)
    return values, scales, weight.block


def _packed(values: NDArray[np.int8], name: str) -> onnx.TensorProto:
    kind = onnx.TensorProto.INT4
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=packed(values).tobytes())


def _quantized_matmul(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    tensor: onnx.TensorProto,
    done: set[str],
    rounded: BlockedWeight | None = None,
) -> list[onnx.NodeProto]:
    first = tensor.name not in done
    values, scales, block = _store(graph, tensor, done, rounded)
    output = f"{tensor.name}.dequantized"
    node.input[1] = output
    if not first:
        return [node]
    dequantize = helper.make_node("DequantizeLinear", [values, scales], [output], name=output, axis=0, block_size=block)
    return [dequantize, node]


def _quantized_gather(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TensorProto, done: set[str]
) -> list[onnx.NodeProto]:
    """Gather int8 columns and their scales, and multiply: OpenVINO dequantizes blocks of constants only."""
    values, scales, block = _store(graph, tensor, done)
    name, ids = node.output[0], node.input[1]
    block_of_row = f"{tensor.name}.block"
    index = np.arange(tensor.dims[0], dtype=np.int64) // block
    graph.initializer.append(numpy_helper.from_array(index, block_of_row))
    kind = int(tensor.data_type)
    return [
        helper.make_node("Gather", [values, ids], [f"{name}.int8"], axis=1),
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=kind),
        helper.make_node("Gather", [scales, ids], [f"{name}.blocks"], axis=1),
        helper.make_node("Gather", [f"{name}.blocks", block_of_row], [f"{name}.scales"], axis=0),
        helper.make_node("Mul", [f"{name}.cast", f"{name}.scales"], [name]),
    ]


def _raise_opset(model: onnx.ModelProto, version: int) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, version)


def dequantized_channels(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    tensor: onnx.TensorProto,
    done: set[str],
    rounded: BlockedWeight | None = None,
) -> list[onnx.NodeProto]:
    """Store `node`'s weight as symmetric int8 per output channel; return the DequantizeLinear that it now reads."""
    output = f"{tensor.name}.dequantized"
    node.input[1] = output
    if tensor.name in done:
        return []
    done.add(tensor.name)
    array = numpy_helper.to_array(tensor).astype(np.float32)
    axis = output_axis(node)
    if rounded is not None:
        values, scales = rounded.values, rounded.scales
    else:
        values, scales = _nearest(array, tuple(i for i in range(array.ndim) if i != axis))
    names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
    graph.initializer.append(numpy_helper.from_array(values, names[0]))
    graph.initializer.append(numpy_helper.from_array(scales.ravel(), names[1]))
    return [helper.make_node("DequantizeLinear", names, [output], name=output, axis=axis)]


def halved_weight(
    graph: onnx.GraphProto, node: onnx.NodeProto, tensor: onnx.TensorProto, done: set[str]
) -> list[onnx.NodeProto]:
    """Store `node`'s weight as fp16; return the Cast that it now reads. Runtimes fold the cast when they load.

    A weight that fp16 cannot hold stays as it is.
    """
    values = numpy_helper.to_array(tensor)
    if not _fits_fp16(values):
        return []
    output = f"{tensor.name}.cast"
    node.input[list(node.input).index(tensor.name)] = output
    if output in done:
        return []
    done.add(output)
    half = f"{tensor.name}.fp16"
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), half))
    kind = int(tensor.data_type)
    return [helper.make_node("Cast", [half], [output], name=output, to=kind)]


def halved_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants, whatever reads them, are stored in fp16 behind a Cast, which runtimes fold."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for tensor in out.graph.initializer:
        if _is_large(tensor):
            nodes.append(_halved(tensor, tensor.name))
    for node in out.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        cast = None
        if value is not None and _is_large(value):
            cast = _halved(value, node.output[0])
            node.output[0] = cast.input[0]
        nodes += [node] if cast is None else [node, cast]
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    return out


def _is_large(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _MIN_WEIGHTS:
        return False
    return _fits_fp16(numpy_helper.to_array(tensor))


def _fits_fp16(values: NDArray[np.float32]) -> bool:
    return not (values.size and np.abs(values).max() > _MOST_FP16)


def _halved(tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    """Round `tensor` in place; returns the Cast that makes `name` of it."""
    half = f"{name}.fp16"
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
    return helper.make_node("Cast", [half], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of an operator's weight that its outputs lie along."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def keep_used(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make `nodes` the graph's nodes and drop the initializers that none of them reads."""
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    used = {i for n in copies for i in n.input}
    kept = [t for t in graph.initializer if t.name in used]
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(kept)
