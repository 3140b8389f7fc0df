"""A portable decoder graph → the graph that ONNX Runtime runs fastest on a CPU.

Packed query, key and value with GroupQueryAttention, fused norms and activations, packed gate and up, int8 and int4
as MatMulNBits with activations quantized as they come. Rewritten from the traced graph by the form of its subgraphs; a
graph with attention of another form is left alone, and the reason returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering import fusions
from edgemm.runtimes.lowering.attention import group_query_attention
from edgemm.runtimes.lowering.graph import Graph, Unrecognised
from edgemm.runtimes.lowering.linear import quantized_products


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
