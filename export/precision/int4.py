"""Weight-only int4 for decoders: blocks of 32 inputs, symmetric, zero point 0; heads and embeddings in int8.

A matrix [K, N] becomes an INT4 tensor with a scale per block and output before a DequantizeLinear (opset 21), as in
`weights`. Embeddings and the head stay in int8, so that a tied table is stored once and rare tokens keep their place.
Matrices whose inputs no block divides stay in int8 too.
"""

from __future__ import annotations

import onnx

from edgemm.bundle.manifest import Precision
from edgemm.export.precision.compensation import MomentsOf, rounded, sites
from edgemm.export.precision.weights import quantize_weights

ROLE = "decoder"


def precision_of(role: str, asked: Precision) -> Precision:
    """What a component is stored in where `asked` is: int4 is for decoders, whatever else there is takes int8."""
    return "int8" if asked == "int4" and role != ROLE else asked


def quantize_int4(
    model: onnx.ModelProto,
    half_ops: tuple[str, ...] = (),
    moments_of: MomentsOf | None = None,
    restored: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Round the matrices of a decoder to int4, compensated where `moments_of` tells what they multiply.

    Those of the operators `restored` (by `key`) take int8, or fp16 where int8 is what they would have anyway.
    """
    every = sites(model, half_ops)
    in_int4 = [site for site in every if not restored.intersection(site.operators)]
    in_fp16 = restored.difference(*(site.operators for site in every))
    return quantize_weights(model, half_ops, in_fp16, rounded(model, in_int4, moments_of, bits=4))
