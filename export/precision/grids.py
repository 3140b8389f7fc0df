"""The grid that every matrix of a graph is rounded to: what export will do, said beforehand, for training to follow.

A matrix that lies on its grid stays as it is when it is rounded again, compensated for examples or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemm.bundle.manifest import Precision
from edgemm.export.graph import GraphPlan
from edgemm.export.precision.compensation import sites
from edgemm.export.precision.int4 import precision_of
from edgemm.export.precision.static import stored_in_int8
from edgemm.export.precision.weights import block_of_int8, constant_matrix, output_axis, whole_matrix


@dataclass(frozen=True)
class Grid:
    """Steps of a matrix [K, N]: one for `block` inputs and an output, in so many `bits`.

    With `search` it is the step of least squared error (`rounding.plain`), else that of the largest weight.
    """

    bits: int
    block: int
    search: bool


@dataclass(frozen=True)
class Rounded:
    """A matrix of a graph as its grid has it, [K, N] in fp32."""

    matrix: NDArray[np.float32]
    grid: Grid


def rounded_matrices(
    model: onnx.ModelProto, graph: GraphPlan, asked: Precision, *, calibrated: bool
) -> Iterator[Rounded]:
    """The matrices of a traced component that export stores in `asked`, int8 or int4, without any that it restores.

    `calibrated` says whether export will have examples of what the component is given.
    """
    precision = precision_of(graph.role, asked)
    if precision == "int4":
        return _in_blocks(model, graph, bits=4, calibrated=True)
    if graph.treatment == "weight_only":
        return _in_blocks(model, graph, bits=8, calibrated=calibrated)
    if graph.treatment == "dynamic":
        return _by_column(model, graph, calibrated=calibrated)
    return _by_channel(model, graph) if graph.treatment == "static" else iter(())


def _in_blocks(model: onnx.ModelProto, graph: GraphPlan, *, bits: int, calibrated: bool) -> Iterator[Rounded]:
    """Blocks of the rounding that is compensated; the head and the tables in int8."""
    searched = {site.weight: site.block for site in sites(model, graph.half_ops)} if calibrated else {}
    for name, _, matrix in _read(model, graph.half_ops, constant_matrix):
        if name in searched:
            yield Rounded(matrix, Grid(bits, searched[name], search=True))
        else:
            yield Rounded(matrix, Grid(8, block_of_int8(len(matrix)), search=False))


def _by_column(model: onnx.ModelProto, graph: GraphPlan, *, calibrated: bool) -> Iterator[Rounded]:
    """One step a column, or for a row of a table."""
    searched = {site.weight for site in sites(model, graph.half_ops)} if calibrated else set()
    for name, node, matrix in _read(model, graph.half_ops, whole_matrix):
        turned = matrix.T if node.op_type == "Gather" or (node.op_type == "Gemm" and output_axis(node) == 0) else matrix
        yield Rounded(turned, Grid(8, len(turned), search=name in searched))


def _by_channel(model: onnx.ModelProto, graph: GraphPlan) -> Iterator[Rounded]:
    weights = {t.name: t for t in model.graph.initializer}
    for node in stored_in_int8(model.graph, weights, graph.half_ops, graph.float_modules):
        array = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
        matrix = np.moveaxis(array, output_axis(node), 0).reshape(array.shape[output_axis(node)], -1).T
        yield Rounded(matrix, Grid(8, len(matrix), search=False))


def _read(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...],
    matrix_of: Callable[[onnx.NodeProto, dict[str, onnx.TensorProto]], str | None],
) -> Iterator[tuple[str, onnx.NodeProto, NDArray[np.float32]]]:
    weights = {t.name: t for t in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        name = matrix_of(node, weights)
        if name is not None and name not in seen and node.op_type not in half_ops:
            seen.add(name)
            yield name, node, numpy_helper.to_array(weights[name]).astype(np.float32)
