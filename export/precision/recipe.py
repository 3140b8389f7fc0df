"""What may differ from one quantization of a graph to another: what the gate turns when the metric does not hold."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from edgemm.export.precision.ranges import Method


@dataclass(frozen=True)
class Recipe:
    """How one graph is quantized. `restored` are operators (by `key`) that stay in floating point, or int8 in int4."""

    smooth: bool = True
    method: Method = "mse"
    restored: frozenset[str] = frozenset()


AS_USUAL = Recipe()


def key(node: onnx.NodeProto) -> str:
    """The name of an operator; of one without a name, the name of what it makes."""
    return str(node.name or node.output[0])
