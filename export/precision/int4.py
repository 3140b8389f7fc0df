"""Weight-only int4 for decoders: blocks of 32 inputs, symmetric, zero point 0; heads and embeddings in int8.

A matrix [K, N] becomes an INT4 tensor with a scale per block and output before a DequantizeLinear (opset 21), as in
`weights`. Embeddings and the head stay in int8, so that a tied table is stored once and rare tokens keep their place.
Matrices whose inputs no block divides stay in int8 too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemm.bundle.manifest import Precision
from edgemm.export.precision.recipe import key
from edgemm.export.precision.rounding import block_of, compensated, factor_of, plain
from edgemm.export.precision.weights import BlockedWeight, constant_matrix, quantize_weights

ROLE = "decoder"
_LOGITS = "logits"
# What may stand between the head and the logits.
_AFTER_HEAD = ("Add", "Mul", "Div", "Tanh", "Cast", "Identity")

MomentsOf = Callable[[Sequence[str]], Mapping[str, NDArray[np.float32]]]
"""Names of activations [..., K] → their second moments [K, K] over examples."""

_MOMENTS_BYTES = 1 << 30  # at once: what does not fit is seen in another pass over the examples


@dataclass(frozen=True)
class Site:
    """A matrix that is stored in int4, the activations [..., K] that it multiplies, and the operators (by `key`)."""

    weight: str
    inputs: tuple[str, ...]
    block: int
    operators: tuple[str, ...]


def precision_of(role: str, asked: Precision) -> Precision:
    """What a component is stored in where `asked` is: int4 is for decoders, whatever else there is takes int8."""
    return "int8" if asked == "int4" and role != ROLE else asked


def quantize_int4(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...] = (),
    moments_of: MomentsOf | None = None,
    restored: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Round the matrices of a decoder to int4, compensated where `moments_of` tells what they multiply.

    Those of the operators `restored` (by `key`) take int8, or fp16 where int8 is what they would have anyway.
    """
    weights = {t.name: t for t in model.graph.initializer}
    every = sites(model, half_ops)
    in_int8 = {site.weight for site in every if restored.intersection(site.operators)}
    rounded: dict[str, BlockedWeight] = {}
    for group in _groups([site for site in every if site.weight not in in_int8], weights):
        moments = moments_of([i for site in group for i in site.inputs]) if moments_of else {}
        factors: dict[tuple[str, ...], NDArray[np.float32]] = {}
        for site in group:
            matrix = numpy_helper.to_array(weights[site.weight]).astype(np.float32)
            seen = [moments[i] for i in site.inputs if i in moments]
            if not seen:
                rounded[site.weight] = plain(matrix, site.block)
                continue
            if site.inputs not in factors:
                factors = {site.inputs: factor_of(np.sum(seen, axis=0))}  # neighbours alone share it
            rounded[site.weight] = compensated(matrix, factors[site.inputs], site.block)
    in_fp16 = restored.difference(*(site.operators for site in every))
    return quantize_weights(model, half_ops, in_fp16, int4=rounded)


def _groups(found: Sequence[Site], weights: Mapping[str, onnx.TensorProto]) -> Iterator[list[Site]]:
    """Neighbours whose moments fit in memory together, at least one site each."""
    group: list[Site] = []
    sizes: dict[str, int] = {}
    for site in found:
        own = {i: 4 * int(weights[site.weight].dims[0]) ** 2 for i in site.inputs}
        if group and sum((sizes | own).values()) > _MOMENTS_BYTES:
            yield group
            group, sizes = [], {}
        group, sizes = [*group, site], sizes | own
    if group:
        yield group


def sites(model: onnx.ModelProto, half_ops: tuple[str, ...] = ()) -> list[Site]:
    """Every matrix that int4 is for, in the order of the graph."""
    weights = {t.name: t for t in model.graph.initializer}
    head = _head(model.graph)
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for name, nodes in readers.items():
        products = all(n.op_type in ("MatMul", "Gemm") and constant_matrix(n, weights) == name for n in nodes)
        if name not in weights or not products or any(n.op_type in half_ops or n.output[0] == head for n in nodes):
            continue
        block = block_of(int(weights[name].dims[0]))
        if block is not None:
            inputs = tuple(dict.fromkeys(n.input[0] for n in nodes))
            found.append(Site(name, inputs, block, tuple(map(key, nodes))))
    return found


def _head(graph: onnx.GraphProto) -> str | None:
    """The output of the product that makes the logits."""
    makers = {name: node for node in graph.node for name in node.output}
    name = _LOGITS
    while (node := makers.get(name)) is not None and node.op_type in _AFTER_HEAD:
        name = next((i for i in node.input if i in makers), "")
    return name if node is not None else None
