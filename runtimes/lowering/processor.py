"""What this processor's integer products are like, as far as a lowered graph depends on it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


def multiplies_bytes() -> bool:
    """Whether it has instructions for products of bytes (VNNI, AMX), which ONNX Runtime's integer products use."""
    return bool(_flags() & _EXACT)


def saturates() -> bool:
    """Whether unsigned times signed bytes are added in 16 bits: x86 before VNNI. ONNX Runtime has another kernel."""
    return bool(_flags()) and not _flags() & _EXACT


@cache
def _flags() -> frozenset[str]:
    """The flags that Linux knows of an x86 processor; none of another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())
