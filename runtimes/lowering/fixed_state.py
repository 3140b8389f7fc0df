"""A portable decoder graph → the same over buffers of a fixed size, for TensorRT.

A state that grows with every token has another shape in every call: nothing can be captured, kernels are chosen
anew. Here keys and values are written into buffers at the positions that an input names, and attention goes over the
whole buffer; what is not written yet is masked. One graph serves buffers of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering.attention import match
from edgemm.runtimes.lowering.graph import Graph, Unrecognised, Weight
from edgemm.runtimes.lowering.probe import require_causal

PLACES = "cache_positions"
"""The input [new] that says where in the buffers new keys and values are written."""

_MASK, _BUFFER = "attention_mask", "buffer"
_LEAST_BUFFER = 64


def buffer_size(length: int, most: int) -> int:
    """Positions of the buffer that holds `length`: a power of two, so that few sizes are ever used."""
    return min(most, max(_LEAST_BUFFER, 1 << (length - 1).bit_length()))


def lower(path: Path, states: Sequence[StatePort], capacity: int) -> Graph:
    """Rewrite the decoder graph at `path`, which takes at most `capacity` positions.

    `attention_mask` becomes [batch, buffer]. Raises Unrecognised where its attention is not of a known form, or its
    mask is not causal.
    """
    import onnx

    graph = Graph(onnx.load(path, load_external_data=False), path.parent)
    if len(states) % 2 or not states or _MASK not in graph.inputs:
        raise Unrecognised(f"a graph without pairs of states or {_MASK}")
    layers = [match(graph, k, v) for k, v in zip(states[::2], states[1::2], strict=True)]
    dtype = graph.inputs[states[0].input].type.tensor_type.elem_type
    for bias in {a.bias for a in layers}:
        require_causal(graph, bias, capacity, dtype)
    masked = _mask(graph, dtype)
    for attention in layers:
        for node in graph.users(attention.bias):
            node.input[:] = [masked if name == attention.bias else name for name in node.input]
        for state, new in ((attention.key_state, attention.key), (attention.value_state, attention.value)):
            _write(graph, state, new)
    _ports(graph, states)
    graph.finish()
    return graph


def _write(graph: Graph, state: StatePort, new: str) -> None:
    """`new` [B, H, S, D] into the buffer at the places, in place of being put behind it."""
    graph.remove(graph.maker(state.output))
    graph.weights["places.shape"] = Weight.of(np.array([1, 1, -1, 1]))
    rows = graph.add("Reshape", [PLACES, "places.shape"], [f"{state.output}.rows"])
    size = graph.add("Shape", [new], [f"{state.output}.size"])
    places = graph.add("Expand", [rows, size], [f"{state.output}.places"])
    graph.add("ScatterElements", [state.input, places, new], [state.output], axis=2)
    graph.index()


def _mask(graph: Graph, dtype: int) -> str:
    """[B, 1, S, buffer]: 0 up to each query's own place where the mask is not 0, else minus a lot."""
    from onnx import helper

    kind = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {
        "mask.zero": np.zeros(1, np.int64), "mask.rows": np.array([1, 1, -1, 1]), "mask.columns": np.array([1, 2]),
        "mask.first": np.array(0), "mask.step": np.array(1),
        "mask.seen": np.array(0, kind), "mask.unseen": np.array(np.finfo(kind).min, kind),
    }  # fmt: skip
    graph.weights |= {name: Weight.of(value) for name, value in constants.items()}
    sizes = graph.add("Shape", [_MASK], ["mask.sizes"])
    width = graph.add("Gather", [sizes, "mask.step"], ["mask.width"], axis=0)
    columns = graph.add("Range", ["mask.first", width, "mask.step"], ["mask.column"])
    places = graph.add("Reshape", [PLACES, "mask.rows"], ["mask.place"])
    before = graph.add("LessOrEqual", [columns, places], ["mask.before"])
    told = graph.add("Unsqueeze", [_MASK, "mask.columns"], ["mask.told"])
    there = graph.add("Greater", [told, "mask.zero"], ["mask.there"])
    seen = graph.add("And", [before, there], ["mask.both"])
    return graph.add("Where", [seen, "mask.seen", "mask.unseen"], ["mask.bias"])


def _ports(graph: Graph, states: Sequence[StatePort]) -> None:
    from onnx import TensorProto, helper

    for state in states:
        dims = ["batch", state.shape[1], _BUFFER, state.shape[3]]
        for ports, name in ((graph.inputs, state.input), (graph.outputs, state.output)):
            kind = ports[name].type.tensor_type.elem_type
            ports[name] = helper.make_tensor_value_info(name, kind, dims)
    graph.inputs[_MASK] = helper.make_tensor_value_info(_MASK, TensorProto.INT64, ["batch", _BUFFER])
    graph.inputs[PLACES] = helper.make_tensor_value_info(PLACES, TensorProto.INT64, ["new"])
