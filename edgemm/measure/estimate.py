"""What the weights of a checkpoint would take in a bundle, from the names and shapes of its tensors alone.

The recipes of `edgemm.export.precision`, without their graphs: nothing is loaded and nothing is traced.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from edgemm.export.checkpoint import Tensor

PRECISIONS = ("fp32", "fp16", "int8", "int4")

_SMALL = 4096  # matrices below it stay as they are in blocks
_SCALE_BYTES = 4
_BLOCKS = {8: (128, 64, 32, 16), 4: (32, 16)}
_WITHOUT = 32  # what a block has about where none of them fits
# Learned positions are added, not multiplied: they stay as they are.
_POSITIONS = re.compile(r"position_embed|pos_embed|embed_positions|relative_position|position_ids|\.wpe\.")
_TABLE = re.compile(r"embed_tokens|word_embeddings|lm_head|proj_out|token_embedding|\.shared\.|\.wte\.")


def estimate(tensors: Mapping[str, Tensor], *, blocked: bool, decodes: bool = False) -> dict[str, int]:
    """Bytes by precision of one component's weights.

    `blocked` says that its int8 is weights in blocks (decoders, texts), not weights and activations (encoders).
    int4 is for what `decodes`; everything else stays in int8 there. Norms, biases and positions stay in fp32; tables
    of tokens are no less than int8.
    """
    stored = {p: "int8" if p == "int4" and not decodes else p for p in PRECISIONS}
    return {p: sum(_bytes_of(name, t, s, blocked) for name, t in tensors.items()) for p, s in stored.items()}


def _bytes_of(name: str, tensor: Tensor, precision: str, blocked: bool) -> int:
    n = tensor.parameters
    matrix = sum(size > 1 for size in tensor.shape) > 1 and not _POSITIONS.search(name)
    if precision == "fp16":
        return 2 * n
    if precision == "fp32" or not matrix or (blocked and n < _SMALL):
        return 4 * n
    if not blocked:
        return n + _SCALE_BYTES * tensor.shape[0]
    halves = precision == "int4" and not _TABLE.search(name) and _block(tensor, 4) > 0
    bits = 4 if halves else 8
    return math.ceil(n * (bits / 8 + _SCALE_BYTES / (_block(tensor, bits) or _WITHOUT)))


def _block(tensor: Tensor, bits: int) -> int:
    return next((b for b in _BLOCKS[bits] if tensor.shape[-1] % b == 0), 0)
