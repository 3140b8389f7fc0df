"""Products with constant matrices: found, packed side by side, and written for ONNX Runtime's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Weight, attributes

_BLOCKS = (16, 32, 64, 128, 256)
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Linear:
    """`output` = `input` · weight [K, N] + bias [N].

    With `block`, the weight is int8 or int4 with `scales` [K / block, N].
    """

    input: str
    output: str
    weight: Weight
    name: str
    scales: Weight | None = None
    block: int = 0
    bias: Weight | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def bits(self) -> int:
        return _BITS.get(self.weight.dtype.name, 0)


def linear(graph: Graph, name: str) -> Linear | None:
    """The product that makes `name`, with the bias that is added to it."""
    add = graph.maker(name, "Add")
    if add is None:
        return product(graph, name)
    for value, bias in (add.input, reversed(add.input)):
        found = product(graph, value)
        weight = graph.weights.get(bias)
        if found and weight and weight.shape == (found.width,) and graph.only_user(value, "Add"):
            return Linear(found.input, name, found.weight, found.name, found.scales, found.block, weight)
    return None


def product(graph: Graph, name: str) -> Linear | None:
    """The product that makes `name`, without a bias."""
    node = graph.maker(name, "MatMul")
    if node is None:
        return None
    x, w = node.input
    weight = graph.weights.get(w)
    if weight is not None:
        return Linear(x, name, weight, w) if len(weight.shape) == 2 and weight.dtype == np.float32 else None
    dequantize = graph.maker(w, "DequantizeLinear")
    if dequantize is None or len(dequantize.input) != 2:
        return None
    values, scales = (graph.weights.get(i) for i in dequantize.input)
    about = attributes(dequantize)
    block = about.get("block_size", 0)
    if values is None or scales is None or about.get("axis", 1) != 0 or block not in _BLOCKS:
        return None
    found = Linear(x, name, values, dequantize.input[0], scales, block)
    fits = bool(found.bits) and len(values.shape) == 2 and scales.dtype == np.float32
    return found if fits else None


def packable(parts: Sequence[Linear]) -> bool:
    """Whether the products read one value and are of one kind."""
    kinds = {(p.input, p.block, p.bits, p.bias is None) for p in parts}
    return len(kinds) == 1


def write(graph: Graph, parts: Sequence[Linear], output: str) -> None:
    """Append one product that makes `output`: the outputs of `parts` side by side."""
    first, name = parts[0], "+".join(p.name for p in parts)
    product = output if first.bias is None else f"{output}.product"
    if first.block:
        _write_blocked(graph, parts, name, product)
    else:
        graph.weights[name] = _beside([p.weight for p in parts], axis=1)
        graph.add("MatMul", [first.input, name], [product])
    if first.bias is not None:
        bias = f"{name}.bias"
        graph.weights[bias] = _beside([p.bias for p in parts if p.bias], axis=0)
        graph.add("Add", [product, bias], [output])


def _write_blocked(graph: Graph, parts: Sequence[Linear], name: str, output: str) -> None:
    first = parts[0]
    rows, block = first.weight.shape[0], first.block
    width = sum(p.width for p in parts)
    shape = (width, rows // block, block * first.bits // 8)
    values, scales = f"{name}.uint{first.bits}", f"{name}.scales"
    turned = _offset_rows if first.bits == 8 else _offset_halves
    graph.weights[values] = Weight(
        np.dtype(np.uint8), shape, lambda: np.concatenate([turned(p.weight.load()) for p in parts]).reshape(shape)
    )
    graph.weights[scales] = Weight(
        np.dtype(np.float32), (width * (rows // block),), lambda: np.concatenate([_scales(p) for p in parts])
    )
    graph.add(
        "MatMulNBits",
        [first.input, values, scales],
        [output],
        MICROSOFT,
        K=rows,
        N=width,
        bits=first.bits,
        block_size=block,
        accuracy_level=4,
    )


def _offset_rows(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [K, N] → uint8 [N, K], 128 meaning zero."""
    import cv2

    turned: NDArray[np.uint8] = cv2.transpose(np.asarray(values).view(np.uint8))
    np.bitwise_xor(turned, 0x80, out=turned)
    return turned


def _offset_halves(values: NDArray[Any]) -> NDArray[np.uint8]:
    """int4 [K, N] → uint8 [N, K / 2], two of a row a byte, the first in its low half, 8 meaning zero."""
    turned = _offset_rows(values.astype(np.int8)) - np.uint8(120)
    halves: NDArray[np.uint8] = turned[:, ::2] | (turned[:, 1::2] << np.uint8(4))
    return halves


def _scales(part: Linear) -> NDArray[Any]:
    assert part.scales is not None
    return np.ascontiguousarray(part.scales.load().T).reshape(-1)


def _beside(weights: Sequence[Weight], axis: int) -> Weight:
    if len(weights) == 1:
        return weights[0]
    shape = list(weights[0].shape)
    shape[axis] = sum(w.shape[axis] for w in weights)
    return Weight(weights[0].dtype, tuple(shape), lambda: np.concatenate([w.load() for w in weights], axis))


def quantized_products(graph: Graph) -> None:
    """Write every product with a blocked int8 or int4 matrix as MatMulNBits. Its numbers are not rounded again."""
    for node in [n for n in graph.nodes if n.op_type == "MatMul"]:
        found = product(graph, node.output[0])
        if found is not None and found.block:
            graph.remove(node)
            write(graph, [found], node.output[0])
    graph.prune()
