"""A portable decoder graph → the graph that ONNX Runtime runs fastest on a CPU.

Packed query, key and value with GroupQueryAttention, fused norms and activations, packed gate and up, int8 and int4
as MatMulNBits with activations quantized as they come. Rewritten from the traced graph by the form of its subgraphs; a
graph with attention of another form is left alone, and the reason returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering import fusions
from edgemm.runtimes.lowering.attention import group_query_attention
from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Unrecognised, packed
from edgemm.runtimes.lowering.linear import quantized_products

_INLINE_BYTES = 1024
_ALIGN_BYTES = 4096


def lower(path: Path, states: Sequence[StatePort], capacity: int) -> Graph:
    """Rewrite the decoder graph at `path` for at most `capacity` positions.

    Raises Unrecognised where its attention is not of a known form, or its numbers are not fp32.
    """
    import onnx

    graph = Graph(onnx.load(path, load_external_data=False), path.parent)
    _require_plain(graph)
    fusions.rms_norms(graph)
    fusions.silu(graph)
    group_query_attention(graph, states, capacity)
    fusions.gated_products(graph)
    quantized_products(graph)
    graph.finish()
    left = graph.inputs.keys() & {"attention_mask"}
    if left:
        raise Unrecognised("attention_mask has other readers than attention")
    return graph


def _require_plain(graph: Graph) -> None:
    from onnx import TensorProto

    embeds = graph.inputs.get("inputs_embeds")
    if embeds is None or embeds.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise Unrecognised("inputs_embeds that are not fp32")
    if any(name.startswith("cross.") for name in graph.inputs):
        raise Unrecognised("cross-attention")
    if "logits_indices" not in graph.inputs or "logits" not in graph.outputs:
        raise Unrecognised("a graph without logits_indices or logits")
    if not graph.outputs["logits"].type.tensor_type.shape.dim[2].dim_value:
        raise Unrecognised("logits of no fixed width")


def save(graph: Graph, directory: Path, name: str = "decoder") -> Path:
    """Write `graph` and its weights to `directory`; return the graph's file."""
    from onnx import helper, numpy_helper

    path, data = directory / f"{name}.onnx", f"{name}.data"
    initializers = []
    with (directory / data).open("wb") as file:
        for key, weight in graph.weights.items():
            if weight.bytes < _INLINE_BYTES:
                initializers.append(numpy_helper.from_array(np.asarray(weight.load()), key))
            else:
                initializers.append(_stream(key, weight, file, data))
    nodes = graph.nodes
    made = helper.make_graph(nodes, name, list(graph.inputs.values()), list(graph.outputs.values()), initializers)
    versions = {o.domain: o.version for o in graph.model.opset_import} | {MICROSOFT: 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = helper.make_model(made, opset_imports=opsets, ir_version=graph.model.ir_version)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _stream(name: str, weight: Any, file: Any, location: str) -> Any:
    """Append a weight to `file`; return the tensor that points there."""
    from onnx import TensorProto, helper

    start = -(-file.tell() // _ALIGN_BYTES) * _ALIGN_BYTES
    file.seek(start)
    array = np.ascontiguousarray(weight.load())
    if array.dtype != weight.dtype or array.shape != weight.shape:
        raise AssertionError(f"{name}: {array.dtype} {array.shape} is not {weight.dtype} {weight.shape}")
    if array.dtype.name == "int4":
        array = packed(array)
    array.tofile(file)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(weight.dtype), dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", start), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
