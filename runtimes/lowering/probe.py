"""What a small part of a graph computes, found by running it: safer than to know its spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.lowering.graph import Graph, Unrecognised

_MASKED = -1e4
_FLOAT = 1


class Probe:
    """The part of a graph that `outputs` depend on, as a session of its own.

    Raises Unrecognised where that part is not small: it must not read activations, only their shapes.
    """

    def __init__(self, graph: Graph, outputs: Sequence[str], dtype: int = _FLOAT, limit: int = 64) -> None:
        import onnxruntime
        from onnx import helper, numpy_helper

        nodes = graph.cut(outputs)
        read = {i for n in nodes for i in n.input}
        if len(nodes) > limit or any(n.op_type == "MatMul" for n in nodes):
            raise Unrecognised(f"{outputs[0]} depends on activations")
        weights = [numpy_helper.from_array(np.asarray(graph.weights[i].load()), i) for i in read & graph.weights.keys()]
        self.inputs = {i: graph.inputs[i] for i in graph.inputs if i in read}
        made = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
        part = helper.make_graph(nodes, "probe", list(self.inputs.values()), made, weights)
        model = helper.make_model(part, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(None, {k: v for k, v in feeds.items() if k in self.inputs})
        return found


def rotary_tables(graph: Graph, cos: str, sin: str, positions: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """cos and sin [positions, D / 2] of plain rotary embeddings: a function of each position alone."""
    probe = Probe(graph, [cos, sin])
    if set(probe.inputs) != {"position_ids"} or len(probe.inputs["position_ids"].type.tensor_type.shape.dim) != 2:
        raise Unrecognised("rotary embeddings that are no function of one position")
    whole = probe.run({"position_ids": np.arange(positions)[None]})
    some = np.array([positions - 1, 1, positions // 2])
    part = probe.run({"position_ids": some[None]})
    tables = []
    for all_rows, rows in zip(whole, part, strict=True):
        table = all_rows.reshape(positions, -1)
        half = table.shape[1] // 2
        if not np.array_equal(table[some], rows.reshape(3, -1)) or not np.array_equal(table[:, :half], table[:, half:]):
            raise Unrecognised("rotary embeddings whose angles depend on the length or interleave")
        tables.append(np.ascontiguousarray(table[:, :half]))
    return tables[0], tables[1]


def require_causal(graph: Graph, bias: str, positions: int, dtype: int = _FLOAT) -> None:
    """Raise Unrecognised unless `bias` is 0 up to each query's own position and minus a lot beyond, at any length.

    `dtype` is ONNX's type of it.
    """
    probe = Probe(graph, [bias], dtype)
    if "attention_mask" not in probe.inputs:
        raise Unrecognised("a mask that the host builds")
    for past, new in ((0, 5), (3, 4), (positions - 3, 3)):
        (found,) = probe.run(_feeds(probe, past, new))
        keys, queries = np.arange(past + new)[None, :], past + np.arange(new)[:, None]
        if found.shape[-2:] != (new, past + new):
            raise Unrecognised("a mask of an unknown shape")
        fits = np.where(keys <= queries, found == 0, found < _MASKED)
        if not fits.all():
            raise Unrecognised("a mask that is not causal")


def _feeds(probe: Probe, past: int, new: int) -> dict[str, NDArray[Any]]:
    from onnx import helper

    known = {
        "attention_mask": np.ones((1, past + new), np.int64),
        "position_ids": np.arange(past, past + new)[None],
    }
    for name, value in probe.inputs.items():
        if name not in known:
            sizes = {"batch": 1, "past": past, "new": new, "total": past + new}
            dims = [sizes.get(d.dim_param, d.dim_value or 1) for d in value.type.tensor_type.shape.dim]
            # Read for its shape only, but floats are what the graph takes.
            known[name] = np.zeros(dims, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return known
