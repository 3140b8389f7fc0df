"""A portable encoder graph with int8 weights → the graph that ONNX Runtime runs fastest on a CPU.

Its integer kernels want unsigned activations: signed ones run 10 to 30 times slower on x86, and what it makes of Q/DQ
pairs by itself leaves a value with several readers in floating point. So every product is written out: int8 that was
calibrated as the same integers plus 128, other activations quantized as they come. Attention becomes one operator.
Convolutions gain nothing from int8 here and are computed in floating point from the stored weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, Unrecognised, Weight, attributes
from edgemm.runtimes.lowering.linear import quantized_products

_MIDDLE, _ONE, _STEP, _LEAST, _LAST = "int8.middle", "int8.one", "int8.step", "int8.least", "int8.last"


@dataclass(frozen=True)
class Product:
    """`output` = `input` · weight [K, N] · scales [N], which `node` computes.

    `scale` names the activation's scale where it was calibrated; the product then reads `input` through a Q/DQ pair.
    """

    node: Node
    input: str
    weight: Weight
    scales: str
    name: str
    scale: str = ""
    bias: str = ""

    @property
    def output(self) -> str:
        return str(self.node.output[0])

    @property
    def columns(self) -> str:
        return f"{self.name}.columns"


def lower(path: Path) -> Graph:
    """Rewrite the encoder graph at `path`. Raises Unrecognised where there is nothing to gain."""
    import onnx

    graph = Graph(onnx.load(path, load_external_data=False), path.parent)
    if not any(n.op_type == "DequantizeLinear" for n in graph.nodes):
        raise Unrecognised("nothing in it is int8")
    if graph.model.functions or any(a.HasField("g") for n in graph.nodes for a in n.attribute):
        raise Unrecognised("it has graphs inside")
    _float_convolutions(graph)
    _attention(graph)
    _products(graph)
    quantized_products(graph)
    graph.finish()
    return graph


def _float_convolutions(graph: Graph) -> None:
    """Convolutions read what was there before it was quantized."""
    for node in [n for n in graph.nodes if n.op_type == "Conv"]:
        pair = _pair(graph, node.input[0])
        if pair is not None:
            node.input[0] = pair[0]
    graph.prune()


def _pair(graph: Graph, name: str) -> tuple[str, str] | None:
    """What a symmetric int8 Q/DQ pair that makes `name` reads, and the name of its scale."""
    restored = graph.maker(name, "DequantizeLinear")
    stored = graph.maker(restored.input[0], "QuantizeLinear") if restored is not None else None
    if stored is None or len(stored.input) != 3:
        return None
    scale, zero = graph.weights.get(stored.input[1]), graph.constant(stored.input[2])
    plain = scale is not None and scale.shape == () and zero is not None and zero.dtype == np.int8 and not zero.any()
    return (str(stored.input[0]), str(stored.input[1])) if plain else None


def _product(graph: Graph, node: Node) -> Product | None:
    """The product with int8 columns that a MatMul or Gemm is."""
    restored = graph.maker(node.input[1], "DequantizeLinear")
    if restored is None or len(restored.input) != 2:
        return None
    values, scales = (graph.weights.get(i) for i in restored.input)
    about, how = attributes(node), attributes(restored)
    turned = bool(about.get("transB", 0))
    if (
        values is None
        or scales is None
        or values.dtype != np.int8
        or len(values.shape) != 2
        or how.get("block_size", 0)
    ):
        return None
    plain = about.get("alpha", 1.0) == 1.0 and about.get("beta", 1.0) == 1.0 and not about.get("transA", 0)
    axis = 0 if turned else 1
    by_column = scales.dtype == np.float32 and scales.shape == (values.shape[axis],) and how.get("axis", 1) == axis
    bias = str(node.input[2]) if len(node.input) > 2 else ""
    if not plain or not by_column or (bias and not _is_bias(graph, bias, values.shape[axis])):
        return None
    if turned:
        values = _turned(values)
    x, scale = _pair(graph, node.input[0]) or (str(node.input[0]), "")
    return Product(node, x, values, str(restored.input[1]), str(restored.input[0]), scale, bias)


def _is_bias(graph: Graph, name: str, width: int) -> bool:
    return name in graph.weights and graph.weights[name].shape == (width,)


def _turned(weight: Weight) -> Weight:
    return Weight(weight.dtype, weight.shape[::-1], lambda: np.ascontiguousarray(np.asarray(weight.load()).T))


def _products(graph: Graph) -> None:
    graph.weights[_MIDDLE] = Weight.of(np.array(128, np.uint8))
    made: dict[tuple[str, str], str] = {}
    for node in [n for n in graph.nodes if n.op_type in ("MatMul", "Gemm")]:
        found = _product(graph, node)
        if found is None:
            continue
        graph.remove(node)
        graph.weights[found.columns] = found.weight
        if found.scale:
            _calibrated(graph, found, made)
        else:
            _as_it_comes(graph, found, made)
    graph.prune()


def _calibrated(graph: Graph, found: Product, made: dict[tuple[str, str], str]) -> None:
    place = (found.input, found.scale)
    if place not in made:
        made[place] = graph.add("QuantizeLinear", [*place, _MIDDLE], [f"{found.input}.{found.scale}.uint8"])
    output, bias, last = found.output, found.bias, _biased(graph, found)
    if not bias and last is not None:
        graph.remove(last)
        output, bias = str(last.output[0]), next(i for i in last.input if i != found.output)
    inputs = [made[place], found.columns, found.scale, found.scales, _MIDDLE]
    graph.add("MatMulIntegerToFloat", [*inputs, *(["", bias] if bias else [])], [output], MICROSOFT)


def _as_it_comes(graph: Graph, found: Product, made: dict[tuple[str, str], str]) -> None:
    """Every row of the activation has a scale of its own: a step for all rows loses words to a loud one."""
    place = (found.input, "")
    if place not in made:
        made[place] = _rows_quantized(graph, found.input, found.weight.shape[0])
    graph.weights[_ONE] = Weight.of(np.array(1, np.float32))
    exact = f"{found.output}.unscaled"
    graph.add("MatMulIntegerToFloat", [made[place], found.columns, _ONE, found.scales, _MIDDLE], [exact], MICROSOFT)
    scaled = f"{found.output}.scaled" if found.bias else found.output
    graph.add("Mul", [exact, _row_scale(found.input)], [scaled])
    if found.bias:
        graph.add("Add", [scaled, found.bias], [found.output])


def _rows_quantized(graph: Graph, x: str, width: int) -> str:
    """x [..., K] → uint8 of the same shape, 128 meaning zero, by the scales [..., 1] that `_row_scale` names."""
    flat = f"rows.{width}"
    for name, values in ((_LAST, [-1]), (flat, [-1, width])):
        graph.weights[name] = Weight.of(np.array(values))
    for name, value in ((_STEP, 1 / 127), (_LEAST, 1e-9)):
        graph.weights[name] = Weight.of(np.array(value, np.float32))
    peak = graph.add("ReduceMax", [graph.add("Abs", [x], [f"{x}.size"]), _LAST], [f"{x}.peak"], keepdims=1)
    scale = graph.add("Max", [graph.add("Mul", [peak, _STEP], [f"{x}.step"]), _LEAST], [_row_scale(x)])
    scales = graph.add("Reshape", [scale, _LAST], [f"{x}.scales"])
    count = graph.add("Shape", [scales], [f"{x}.count"])
    zeros = graph.add("Expand", [_MIDDLE, count], [f"{x}.zeros"])
    rows = graph.add("Reshape", [x, flat], [f"{x}.flat"])
    stored = graph.add("QuantizeLinear", [rows, scales, zeros], [f"{x}.stored"], axis=0)
    return graph.add("Reshape", [stored, graph.add("Shape", [x], [f"{x}.shape"])], [f"{x}.uint8"])


def _row_scale(x: str) -> str:
    return f"{x}.row_scale"


def _biased(graph: Graph, found: Product) -> Node | None:
    """The addition of a bias to a product; not before Gelu, which takes it itself."""
    add = graph.only_user(found.output, "Add")
    bias = next((i for i in add.input if i != found.output), "") if add is not None else ""
    if (
        add is None
        or not _is_bias(graph, bias, found.weight.shape[1])
        or graph.only_user(add.output[0], "Gelu") is not None
    ):
        return None
    return add


def _attention(graph: Graph) -> None:
    """softmax(query · keyᵀ) · value without a mask → MultiHeadAttention."""
    for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
        _fuse(graph, softmax)
        graph.index()
    graph.prune()


def _fuse(graph: Graph, softmax: Node) -> None:
    scores = graph.maker(softmax.input[0], "MatMul")
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
    else:
        inputs = []
    if inputs:
        graph.remove(flat)
        graph.add("MultiHeadAttention", inputs, flat.output, MICROSOFT, num_heads=heads, scale=scale)


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
