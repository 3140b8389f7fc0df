"""Attention as one operator: torch sees a single call, ONNX gets the plain subgraph.

Tracing a layer's attention operator by operator takes a quarter of a deep decoder's time; the form that it must come
out as is fixed anyway (matmul, add, softmax, matmul: what every lowering looks for).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset20

op: Any = opset20

_LIBRARY = torch.library.Library("edgemm", "DEF")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor")


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """torch's own attention, so that what a graph is compared with owes nothing to `_graph`."""
    grouped = key.shape[1] != query.shape[1]
    seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)
    return seen.transpose(1, 2).contiguous()


def _shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    batch, heads, new, _ = query.shape
    return query.new_empty(batch, new, heads, value.shape[-1])


_LIBRARY.impl("attention", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("edgemm::attention", _shape, lib=_LIBRARY)

attention = torch.ops.edgemm.attention.default
"""query [B, H, S, D], key [B, Hkv, T, D], value [B, Hkv, T, V] → [B, S, H, V]; mask [B or 1, H or 1, S, T] is added."""


def _graph(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
    heads, kv_heads = query.shape[1], key.shape[1]
    if kv_heads != heads:
        # One gather by constant rows: repeating would compute shapes in every layer.
        rows = op.Constant(value=ir.tensor(np.arange(heads) * kv_heads // heads))
        key, value = op.Gather(key, rows, axis=1), op.Gather(value, rows, axis=1)
    factor = op.Constant(value=ir.tensor(np.array(scale, query.dtype.numpy())))
    scores = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if mask is not None:
        scores = op.Add(scores, mask)
    if query.dtype != ir.DataType.FLOAT:
        weights = op.Cast(op.Softmax(op.Cast(scores, to=ir.DataType.FLOAT), axis=-1), to=query.dtype)
    else:
        weights = op.Softmax(scores, axis=-1)
    return op.Transpose(op.MatMul(weights, value), perm=[0, 2, 1, 3])


TRANSLATION = {attention: _graph}
"""For `torch.onnx.export(custom_translation_table=…)`."""
