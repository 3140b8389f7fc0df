"""A portable encoder graph with int8 weights → the graph that ONNX Runtime runs fastest on a CPU.

Its integer kernels want unsigned activations: signed ones run 10 to 30 times slower on x86, and what it makes of Q/DQ
pairs by itself leaves a value with several readers in floating point. So every product is written out: int8 that was
calibrated as the same integers plus 128, other activations quantized as they come. Attention becomes one operator.
Convolutions gain nothing from int8 here and are computed in floating point from the stored weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, Unrecognised, Weight, attributes
from edgemm.runtimes.lowering.integers import Integers, integer_products, pair
from edgemm.runtimes.lowering.linear import quantized_products
from edgemm.runtimes.lowering.rotary import rotary_embeddings
from edgemm.runtimes.lowering.twins import norms_with_twins


def lower(path: Path, *, integers: bool) -> Graph:
    """Rewrite the encoder graph at `path`. Raises Unrecognised where there is nothing to gain.

    With `integers` the processor multiplies bytes: weights in blocks become products of integers, too, in
    graphs with many rows (words were counted for Moonshine alone).
    """
    import onnx

    graph = Graph(onnx.load(path, load_external_data=False), path.parent)
    if not any(n.op_type == "DequantizeLinear" for n in graph.nodes):
        raise Unrecognised("nothing in it is int8")
    if graph.model.functions or any(a.HasField("g") for n in graph.nodes for a in n.attribute):
        raise Unrecognised("it has graphs inside")
    _float_convolutions(graph)
    norms_with_twins(graph)
    rotary_embeddings(graph)
    _attention(graph)
    integer_products(graph, Integers(graph), blocks=integers and not _reads_words(graph))
    quantized_products(graph)
    graph.finish()
    return graph


def _reads_words(graph: Graph) -> bool:
    """A text has few rows, for which blocks are as fast."""
    from onnx import TensorProto

    return any(v.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64) for v in graph.inputs.values())


def _float_convolutions(graph: Graph) -> None:
    """Convolutions read what was there before it was quantized."""
    for node in [n for n in graph.nodes if n.op_type == "Conv"]:
        found = pair(graph, node.input[0])
        if found is not None:
            node.input[0] = found[0]
    graph.prune()


def _attention(graph: Graph) -> None:
    """softmax(query · keyᵀ + mask) · value, with a mask or without → MultiHeadAttention."""
    for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
        _fuse(graph, softmax)
        graph.index()
    graph.prune()


def _fuse(graph: Graph, softmax: Node) -> None:
    scores, mask = _scores(graph, softmax.input[0])
    mixed = graph.only_user(softmax.output[0], "MatMul")
    back = graph.only_user(mixed.output[0], "Transpose") if mixed is not None else None
    flat = graph.only_user(back.output[0], "Reshape") if back is not None else None
    if scores is None or mixed is None or back is None or flat is None or not _is_turn(back, [0, 2, 1, 3]):
        return
    if attributes(softmax).get("axis", -1) not in (-1, 3) or mixed.input[0] != softmax.output[0]:
        return
    value, dim = _rows(graph, mixed.input[1])
    heads = _width(graph, value) // dim if dim else 0
    key = graph.maker(scores.input[1], "Transpose")
    if not heads or key is None or _last(graph, flat.input[1]) not in (-1, heads * dim):
        return
    query, scale = _unscaled(graph, scores.input[0])
    rows, width = _rows(graph, query)
    if width:
        rows, more = _unscaled(graph, rows)
        query, scale = rows, scale * more
    else:
        query = _flattened(graph, query)
    if _is_turn(key, [0, 2, 3, 1]):
        keys = _split(graph, key.input[0])[0]
        inputs = [query, keys, value] if keys else []
    elif _is_turn(key, [0, 1, 3, 2]):
        keys = _rows(graph, key.input[0])[0]
        inputs = [query, keys, value] if keys else [query, str(key.input[0]), str(mixed.input[1])]
        if mask and not keys:
            return  # keys of elsewhere, by heads: their number is not the mask's
    else:
        inputs = []
    if inputs:
        graph.remove(flat)
        if mask:
            inputs += ["", "", _whole_mask(graph, mask, *inputs[:2])]
        graph.add("MultiHeadAttention", inputs, flat.output, MICROSOFT, num_heads=heads, scale=scale)


def _scores(graph: Graph, name: str) -> tuple[Node | None, str]:
    """The product that makes scores, and the mask that is added to it, if any."""
    add = graph.maker(name, "Add")
    if add is None:
        return graph.maker(name, "MatMul"), ""
    products = [graph.maker(i, "MatMul") for i in add.input]
    first = next((k for k, p in enumerate(products) if p is not None), 0)
    return products[first], str(add.input[1 - first])


def _whole_mask(graph: Graph, mask: str, query: str, key: str) -> str:
    """The mask for every query and key; the operator spreads it over texts and heads alone."""
    whole = f"{mask}.whole"
    if graph.maker(whole) is None:
        graph.weights["mask.one"] = Weight.of(np.array([1]))
        sizes = [graph.add("Shape", [x], [f"{whole}.{n}"], start=1, end=2) for x, n in ((query, "rows"), (key, "keys"))]
        graph.add("Concat", ["mask.one", "mask.one", *sizes], [f"{whole}.shape"], axis=0)
        graph.add("Expand", [mask, f"{whole}.shape"], [whole])
    return whole


def _is_turn(node: Node, perm: list[int]) -> bool:
    return list(attributes(node).get("perm", ())) == perm


def _rows(graph: Graph, name: str) -> tuple[str, int]:
    """The [B, S, H · D] whose heads `name` [B, H, S, D] holds, and D; ("", 0) where it was made otherwise."""
    turn = graph.maker(name, "Transpose")
    return _split(graph, turn.input[0]) if turn is not None and _is_turn(turn, [0, 2, 1, 3]) else ("", 0)


def _split(graph: Graph, name: str) -> tuple[str, int]:
    """The same for `name` [B, S, H, D]."""
    split = graph.maker(name, "Reshape")
    dim = _last(graph, split.input[1]) if split is not None else None
    return (str(split.input[0]), dim) if split is not None and dim and dim > 0 else ("", 0)


def _last(graph: Graph, shape: str) -> int | None:
    node = graph.maker(shape, "Concat")
    value = graph.constant(node.input[-1] if node is not None else shape)
    return int(value.reshape(-1)[-1]) if value is not None else None


def _width(graph: Graph, name: str) -> int:
    """The last dimension of what a product with a constant matrix makes, bias included; 0 of anything else."""
    node = graph.maker(name, "MatMul", "Add")
    if node is not None and node.op_type == "Add":
        node = next((m for m in (graph.maker(i, "MatMul") for i in node.input) if m is not None), None)
    if node is None:
        return 0
    restored = graph.maker(node.input[1], "DequantizeLinear", "Cast")
    weight = graph.weights.get(node.input[1] if restored is None else restored.input[0])
    return weight.shape[1] if weight is not None and len(weight.shape) == 2 else 0


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    node = graph.maker(name, "Mul")
    factor = graph.scalar(node.input[1]) if node is not None else None
    return (str(node.input[0]), factor) if node is not None and factor is not None else (name, 1.0)


def _flattened(graph: Graph, name: str) -> str:
    """[B, H, S, D] → [B, S, H · D]."""
    graph.weights["heads.flat"] = Weight.of(np.array([0, 0, -1]))
    rows = f"{name}.rows"
    if graph.maker(rows) is None:
        graph.add("Transpose", [name], [f"{name}.turned"], perm=[0, 2, 1, 3])
        graph.add("Reshape", [f"{name}.turned", "heads.flat"], [rows])
    return rows
