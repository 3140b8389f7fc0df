"""What the gates of one export came to: what the manifest and the report say of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgemm.bundle.manifest import GateCheck, NodeNote, SpeedCheck
from edgemm.export.precision.gates import (
    AS_USUAL,
    AccuracyGate,
    Choice,
    Settled,
    SpeedGate,
    check_speed,
    gate_check,
    notes,
)


@dataclass(frozen=True)
class Judged:
    """How the bundle is quantized, and what was measured to decide it."""

    choice: Choice = AS_USUAL
    gate: GateCheck | None = None
    restored: tuple[NodeNote, ...] = ()
    speed: tuple[SpeedCheck, ...] = ()
    settled: Settled | None = None


UNJUDGED = Judged()


def judged(gate: AccuracyGate, settled: Settled) -> Judged:
    """The outcome of the accuracy gate."""
    return Judged(settled.trial.choice, gate_check(gate, settled), notes(settled), settled=settled)


def judge_speed(
    gate: SpeedGate | None, whole: Path, quantized: Path, before: Judged, step: Callable[[str], None]
) -> Judged:
    """`before` with the times of both bundles. Raises CheckFailed where the speed gate does not hold."""
    if gate is None:
        return before
    step("measuring speed")
    found = tuple(gate.measure(whole, quantized))
    check_speed(gate, found)
    return replace(before, speed=found)
