"""The gates on the command line: `--data`, `--max-drop`, `--require-speedup`, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.cli.shared import Io
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.export.precision.gates import Choice, Gates


@dataclass(frozen=True)
class Asked:
    """What the command line asked of the quantized bundle."""

    data: Path | None
    max_drop: float | None
    require_speedup: float | None
    allow_slower: bool
    calib_method: str | None


def gates_of(asked: Asked, precision: str) -> tuple[Gates, Choice]:
    """The gates, and how to quantize first. Raises UsageError for options without what they need."""
    from edgemm.export.precision.gates import Choice
    from edgemm.export.precision.ranges import METHODS
    from edgemm.measure.judging import gates

    names = {"--data": asked.data, "--max-drop": asked.max_drop, "--require-speedup": asked.require_speedup}
    given = [name for name, value in names.items() if value is not None]
    if precision == "fp32" and given:
        raise UsageError(f"{given[0]} judges a quantized bundle, and nothing is quantized", hint="add --int8")
    if asked.calib_method is not None and precision != "int8":
        raise UsageError("--calib-method chooses the ranges of --int8", hint="add --int8")
    method = next((m for m in METHODS if m == asked.calib_method), None)
    if asked.calib_method is not None and method is None:
        raise UsageError(f"{asked.calib_method!r} is no way to choose ranges", hint=f"there are: {', '.join(METHODS)}")
    found = gates(
        data=asked.data,
        max_drop=asked.max_drop,
        require_speedup=asked.require_speedup,
        allow_slower=asked.allow_slower,
    )
    return found, Choice(method=method or "mse", alternatives=method is None)


def show_gates(io: Io, document: dict[str, Any]) -> None:
    """What the gates measured, for people."""
    gate = document["gate"]
    if "max_drop" in gate:
        io.show(
            f"{gate['metric']} {gate['before']:.2f} % in fp32, {gate['after']:.2f} % in this bundle, "
            f"on {gate['n']} examples; {gate['max_drop']:g} points were allowed"
        )
        for node in gate["restored"]:
            io.show(f"restored: {node}")
    for name, ratio in document["speedup"].items():
        io.show(f"{name}: {ratio:.2f} times as fast as fp32 here")
