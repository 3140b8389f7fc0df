"""Static int8 for encoders: explicit QDQ, symmetric, one artifact for every runtime.

Weights per output channel, activations per tensor, zero points 0, only MatMul, Gemm and Conv with constant weights, and
no quantized bias: the form that ONNX Runtime, OpenVINO and TensorRT all read and run as int8. The ranges come from
real examples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemm.errors import CheckpointError
from edgemm.export.graph import IR_VERSION, OPSET

Feeds = Mapping[str, NDArray[Any]]
_OPERATORS = ("MatMul", "Gemm", "Conv")


class _Reader:
    """ONNX Runtime's calibration reader over feeds in memory."""

    def __init__(self, examples: Sequence[Feeds]) -> None:
        self._examples = examples
        self.rewind()

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._iterator, None)

    def rewind(self) -> None:
        self._iterator: Iterator[dict[str, NDArray[Any]]] = iter([dict(e) for e in self._examples])


def quantize_static_int8(
    model: onnx.ModelProto,
    examples: Sequence[Feeds],
    *,
    exclude: Sequence[str] = (),
    activations: bool = False,
) -> onnx.ModelProto:
    """Insert Q/DQ pairs with ranges from `examples` (feeds by input name).

    `activations` also quantizes what each operator gives out, which a chain of convolutions needs to stay in int8; for
    transformers only what goes in is quantized. Raises CheckpointError without examples.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if not examples:
        raise CheckpointError(
            f"{model.graph.name} needs examples for --int8", hint="add --calib PATH (pictures or sound)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "fp32.onnx"), Path(scratch, "int8.onnx")
        onnx.save(_named(model), source)
        quantize_static(
            source,
            target,
            _Reader(examples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": [] if activations else list(_OPERATORS),
            },
        )
        quantized = onnx.load(target)
    return _portable(quantized)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name, which the quantizer selects by."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for i, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return named


def _portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Standard domain and opset only, and nothing that the quantizer wrote about itself."""
    standard = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    foreign = {n.domain for n in model.graph.node} - {"", "ai.onnx"}
    if foreign or standard[0].version > OPSET + 1:
        raise CheckpointError(f"the int8 graph is not portable: {foreign or standard[0].version}")
    del model.opset_import[:], model.metadata_props[:], model.graph.value_info[:]
    model.opset_import.extend(standard)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "edgemm", ""
    return model


def excluded_nodes(model: onnx.ModelProto) -> list[str]:
    """MatMul and Conv nodes whose weight is not constant: attention's own products stay in floating point."""
    constants = {t.name for t in model.graph.initializer}
    return [
        n.name or n.output[0]
        for n in model.graph.node
        if n.op_type in _OPERATORS and n.input[1] not in constants
    ]


def calibration_digest(examples: Sequence[Feeds]) -> str:
    """SHA-256 over the calibration tensors, in order."""
    import hashlib

    digest = hashlib.sha256()
    for feeds in examples:
        for name in sorted(feeds):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(feeds[name]).tobytes())
    return digest.hexdigest()
