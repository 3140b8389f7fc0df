"""What TensorRT is known not to build, found before it is tried: node, operator, reason and mend.

The parser itself cannot be asked: it says that it supports NonZero, and drops the lengths that attention is given
(TensorRT-RTX 1.7).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_HOST = "do it in the host's part of the family, before or after the graph"


@dataclass(frozen=True)
class Finding:
    """One node that cannot be built, and what to do about it."""

    node: str
    operator: str
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.reason}; {self.mend}"


@dataclass(frozen=True)
class _Rule:
    operators: tuple[str, ...]
    reason: str
    mend: str
    holds: Callable[[Any, dict[str, Any]], bool] = lambda _node, _weights: True


def _attribute(node: Any, name: str) -> Any:
    return next((a for a in node.attribute if a.name == name), None)


def _is_set(name: str) -> Callable[[Any, dict[str, Any]], bool]:
    def holds(node: Any, _weights: dict[str, Any]) -> bool:
        found = _attribute(node, name)
        return found is not None and bool(found.i)

    return holds


def _is_asymmetric(node: Any, weights: dict[str, Any]) -> bool:
    from onnx import TensorProto, numpy_helper

    if len(node.input) < 3 or not node.input[2]:
        return False
    zero = weights.get(node.input[2])
    if zero is None:
        return True
    unsigned = zero.data_type in (TensorProto.UINT8, TensorProto.UINT4, TensorProto.UINT16)
    return unsigned or bool(np.any(numpy_helper.to_array(zero).astype(np.int32)))


def _is_quantized_bias(node: Any, weights: dict[str, Any]) -> bool:
    from onnx import TensorProto

    found = weights.get(node.input[0])
    return found is not None and found.data_type == TensorProto.INT32


def _has_more_outputs(node: Any, _weights: dict[str, Any]) -> bool:
    return sum(1 for name in node.output if name) > 1


def _has_lengths(node: Any, _weights: dict[str, Any]) -> bool:
    return len(node.input) > 6 and bool(node.input[6])


_RULES = (
    _Rule(("NonZero",), "its size depends on the data", "take positions from a constant table, or a mask"),
    _Rule(("NonMaxSuppression",), "it has no kernel", _HOST),
    _Rule(("Resize",), "antialias is not built", _HOST, _is_set("antialias")),
    _Rule(("DFT", "MelWeightMatrix"), "it is not parsed", "use STFT of opset 17 and a constant mel matrix"),
    _Rule(("Unique", "DeformConv"), "it is not parsed", _HOST),
    _Rule(
        ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
        "integer operators are not parsed",
        "quantize by QuantizeLinear and DequantizeLinear: edgemm export --int8",
    ),
    _Rule(
        ("QuantizeLinear", "DequantizeLinear"),
        "a zero point other than 0, or unsigned",
        "quantize symmetrically to int8: edgemm export --int8",
        _is_asymmetric,
    ),
    _Rule(("DequantizeLinear",), "a bias in int32", "leave biases in floating point", _is_quantized_bias),
    _Rule(("Attention",), "only one output is parsed", "concatenate past and present outside", _has_more_outputs),
    _Rule(("Attention",), "nonpad_kv_seqlen would be ignored without a word", "use a mask", _has_lengths),
    _Rule(("TensorScatter",), "circular writes are not parsed", "write linearly", lambda n, _: _is_circular(n)),
)
_FP32_REFUSED = "sm75"


def _is_circular(node: Any) -> bool:
    mode = _attribute(node, "mode")
    return mode is not None and mode.s == b"circular"


def findings(model: Any, gpus: Collection[str] = ()) -> list[Finding]:
    """Every node of an `onnx.ModelProto` that cannot be built for `gpus` ("sm86"), in graph order."""
    return list(_findings(model, gpus))


def _findings(model: Any, gpus: Collection[str]) -> Iterator[Finding]:
    from onnx import TensorProto

    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Finding(node.name, f"{node.domain}.{node.op_type}", "not of ONNX", "export the checkpoint again")
        for rule in _RULES:
            if node.op_type in rule.operators and rule.holds(node, weights):
                yield Finding(node.name, node.op_type, rule.reason, rule.mend)
        if _FP32_REFUSED in gpus and node.op_type in ("MatMul", "Gemm"):
            wide = [i for i in node.input if i in weights and weights[i].data_type == TensorProto.FLOAT]
            if wide:
                mend = "export with --fp16 or --int8, or leave sm75 out"
                yield Finding(node.name, node.op_type, "products in fp32 are not built for sm75", mend)
