"""What the gates of one export came to: what the manifest and the report say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from edgemm.export.precision.sensitivity import Noise, loudest_first


@dataclass(frozen=True)
class Judged:
    """How the bundle is quantized, and what was measured to decide it."""

    choice: Choice = AS_USUAL
    gate: GateCheck | None = None
    restored: tuple[NodeNote, ...] = ()
    speed: tuple[SpeedCheck, ...] = ()
    settled: Settled | None = None


UNJUDGED = Judged()
LOUD_DB, MOST_LOUD = 30.0, 1 / 8
"""Operators that leave less signal over noise in the outputs are loud; no more than this share of them is restored."""


def loud(noises: Sequence[Noise]) -> list[Noise]:
    """Those of one component that are restored where no metric decides, `noises` being all that it has.

    With EfficientNet-lite0 three of 49, and no picture that fp32 is sure of is named otherwise; with Whisper base one
    of 48, which has most of all the noise.
    """
    found = [n for n in loudest_first(noises) if n.output_db is not None and n.output_db < LOUD_DB]
    return found[: int(MOST_LOUD * len(noises))]


def spared(choice: Choice) -> Judged:
    """The outcome where loud operators were restored without a metric."""
    reason = "weights in fp16: int8 here alone leaves {:.1f} dB of signal over noise in the outputs"
    restored = tuple(
        NodeNote(component=n.component, node=n.node, reason=reason.format(n.output_db)) for n in choice.restored
    )
    return Judged(choice, restored=restored)


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
