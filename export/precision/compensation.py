"""Matrices rounded so that examples lose least: which they are, what they multiply, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemm.export.precision.ranges import Feeds, observed
from edgemm.export.precision.recipe import key
from edgemm.export.precision.rounding import block_of, compensated, factor_of, plain
from edgemm.export.precision.weights import BlockedWeight, constant_matrix

_LOGITS = "logits"
# What may stand between the head and the logits.
_AFTER_HEAD = ("Add", "Mul", "Div", "Tanh", "Cast", "Identity")

MomentsOf = Callable[[Sequence[str]], Mapping[str, NDArray[np.float32]]]
"""Names of activations [..., K] → their second moments [K, K] over examples."""

_MOMENTS_BYTES = 1 << 30  # at once: what does not fit is seen in another pass over the examples


@dataclass(frozen=True)
class Site:
    """A matrix in blocks, the activations [..., K] that it multiplies, and the operators that do so (by `key`)."""

    weight: str
    inputs: tuple[str, ...]
    block: int
    operators: tuple[str, ...]


def compensated_int8(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...],
    restored: frozenset[str],
    examples: Sequence[Feeds],
    *,
    columns: bool,
) -> dict[str, BlockedWeight]:
    """int8 matrices, by name, rounded so that `examples` lose least: in blocks, or with one step a column.

    Those of the operators `restored` (by `key`) are left out.
    """

    def moments_of(names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return moments(model, names, examples)

    rows = {t.name: int(t.dims[0]) for t in model.graph.initializer if t.dims}
    found = [site for site in sites(model, half_ops) if not restored.intersection(site.operators)]
    if columns:
        found = [replace(site, block=rows[site.weight]) for site in found]
    return rounded(model, found, moments_of, bits=8)


def moments(model: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds]) -> dict[str, NDArray[np.float32]]:
    """XᵀX [K, K] of each activation X [rows, K] in `names`, over `examples`."""
    sums: dict[str, NDArray[np.float32]] = {}
    for values in observed(model, list(dict.fromkeys(names)), examples):
        for name, value in values.items():
            rows = value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)
            sums[name] = sums.get(name, np.float32(0)) + rows.T @ rows
    return sums


def rounded(
    model: onnx.ModelProto, found: Sequence[Site], moments_of: MomentsOf | None, *, bits: int
) -> dict[str, BlockedWeight]:
    """The matrices of `found`, by name, compensated where `moments_of` tells what they multiply."""
    weights = {t.name: t for t in model.graph.initializer}
    made: dict[str, BlockedWeight] = {}
    for group in _groups(found, weights):
        seen_by = moments_of([i for site in group for i in site.inputs]) if moments_of else {}
        factors: dict[tuple[str, ...], NDArray[np.float32]] = {}
        for site in group:
            matrix = numpy_helper.to_array(weights[site.weight]).astype(np.float32)
            seen = [seen_by[i] for i in site.inputs if i in seen_by]
            if not seen:
                made[site.weight] = plain(matrix, site.block, bits)
                continue
            if site.inputs not in factors:
                factors = {site.inputs: factor_of(np.sum(seen, axis=0))}  # neighbours alone share it
            made[site.weight] = compensated(matrix, factors[site.inputs], site.block, bits)
    return made


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
    """Every matrix that is compensated, in the order of the graph: none of the embedding or the head."""
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
