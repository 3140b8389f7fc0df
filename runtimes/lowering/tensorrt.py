"""Portable graph → the graph that TensorRT builds an engine from.

Weights stay int8 or int4, activations become floating point: an engine whose activations are int8 builds too, but
whether it is faster is not known before it ran on a GPU. What is fp32 in an int8 graph becomes fp16, except rotary
angles and the means of norms, which fp16 cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Model = Any
"""An `onnx.ModelProto` with its weights."""

# x² and its mean pass fp16's 65,504 where x passes 255.
_NORM_OPERATORS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal")
_ANGLE_OPERATORS = ("Cos", "Sin")


def read(path: Path) -> Model:
    """The graph at `path` with its weights."""
    import onnx

    return onnx.load(path)


def save(model: Model, directory: Path, name: str) -> Path:
    """Write `model` and its weights, which it loses; return the graph's file."""
    import onnx

    path = directory / f"{name}.onnx"
    onnx.save(model, path, save_as_external_data=True, location=f"{name}.data")
    return path


def lower(model: Model, *, activations: bool = False) -> Model:
    """Rewrite `model` in place so that its graph can be built, and return it; its numbers stay what they are.

    With `activations` those that are int8 stay so.
    """
    if not activations:
        _strip_activations(model.graph)
    _dequantize_tables(model.graph)
    _drop_unused(model.graph)
    return model


def _strip_activations(graph: Any) -> None:
    """Take out every pair of QuantizeLinear and DequantizeLinear."""
    sources = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    renamed = {
        n.output[0]: sources[n.input[0]]
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in sources
    }
    if not renamed:
        return
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        if node.output and node.output[0] in renamed and node.output[0] in outputs:
            node.op_type, node.input[:] = "Identity", [renamed[node.output[0]]]


def _dequantize_tables(graph: Any) -> None:
    """Rows of an int8 table, taken and then scaled, become rows of the dequantized table.

    TensorRT admits an int8 constant only right before its DequantizeLinear.
    """
    from onnx import TensorProto, helper

    weights = {t.name: t for t in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for rows in [n for n in graph.node if n.op_type == "Gather"]:
        table = weights.get(rows.input[0])
        if table is None or table.data_type != TensorProto.INT8:
            continue
        (cast,) = users[rows.output[0]]
        (product,) = users[cast.output[0]]
        scale = _scale_of(product, cast, graph, weights)
        name = f"{table.name}.float"
        block = table.dims[0] // scale.dims[0]
        blocked = {"axis": 0, "block_size": block} if block > 1 else {"axis": 1}
        dequantize = helper.make_node("DequantizeLinear", [table.name, scale.name], [name], **blocked)
        take = helper.make_node("Gather", [name, rows.input[1]], [product.output[0]], axis=1)
        position = list(graph.node).index(product)
        graph.node.remove(product)
        graph.node.insert(position, take)
        graph.node.insert(position, dequantize)


def _scale_of(product: Any, cast: Any, graph: Any, weights: dict[str, Any]) -> Any:
    """The table of scales behind the other factor of `product`."""
    makers = {name: node for node in graph.node for name in node.output}
    (name,) = [i for i in product.input if i != cast.output[0]]
    while name in makers:
        name = makers[name].input[0]
    return weights[name]


def _drop_unused(graph: Any) -> None:
    """Remove nodes and weights that no output needs, and sort the rest: a value is made before it is read."""
    makers = {name: node for node in graph.node for name in node.output if name}
    order: list[Any] = []
    done: set[int] = set()
    needed: set[str] = {o.name for o in graph.output}
    waiting = [(makers[name], False) for name in needed if name in makers]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif id(node) not in done:
            done.add(id(node))
            reads = list(_reads(node))
            needed.update(reads)
            waiting.append((node, True))
            waiting += [(makers[name], False) for name in reads if name in makers]
    weights = [t for t in graph.initializer if t.name in needed]
    copies = [type(node).FromString(node.SerializeToString()) for node in order]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(weights)


def _reads(node: Any) -> Iterable[str]:
    """Every value that a node reads, those of the graphs inside it (branches, loops) included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from (output.name for output in inner.output)
            for child in inner.node:
                yield from _reads(child)


def halved(model: Model) -> Model:
    """`model` with fp16 in place of fp32, inputs and outputs included, but for angles and norms."""
    from onnx import TensorProto
    from onnxruntime.transformers import float16

    _clip_infinities(model.graph, TensorProto.FLOAT)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    model = float16.convert_float_to_float16(
        model,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_NORM_OPERATORS],
        node_block_list=sorted(_angles(model.graph.node)),
    )
    _skip_round_trips(model.graph)
    _drop_unused(model.graph)
    return model


def _skip_round_trips(graph: Any) -> None:
    """Let neighbours that stay in fp32 pass fp32 on: the converter narrows every value between them to fp16 and back.

    An angle would lose its low bits that way, and the square of an outlier become infinite.
    """
    from onnx import TensorProto

    casts = {n.output[0]: n for n in graph.node if n.op_type == "Cast"}

    def wide(name: str) -> str:
        widening = casts.get(name)
        if widening is None or widening.attribute[0].i != TensorProto.FLOAT:
            return name
        narrowing = casts.get(widening.input[0])
        if narrowing is None or not narrowing.name.endswith("_cast_to_fp16_node"):
            return name
        return str(narrowing.input[0])

    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = wide(name)


def _angles(nodes: Iterable[Any]) -> set[str]:
    """Names of the nodes that the argument of a cosine or a sine comes from, theirs included."""
    nodes = list(nodes)
    makers = {name: node for node in nodes for name in node.output}
    found: set[str] = set()
    waiting = [n for n in nodes if n.op_type in _ANGLE_OPERATORS]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting += [makers[name] for name in node.input if name in makers]
    return found


def _clip_infinities(graph: Any, dtype: int) -> None:
    """Constants beyond fp16, the "minus infinity" of masks, become its largest numbers."""
    from onnx import numpy_helper

    tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.HasField("t"))]
    limit = float(np.finfo(np.float16).max)
    for tensor in tensors:
        if tensor.data_type != dtype:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size and np.isfinite(array).all() and np.abs(array).max() > limit:
            tensor.CopyFrom(numpy_helper.from_array(np.clip(array, -limit, limit), tensor.name))
