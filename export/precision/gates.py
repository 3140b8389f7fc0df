"""The gates: the task's metric on the user's data, and speed. What does not hold is mended, or refused.

Everything is quantized first. Where the metric falls too far, other ways to choose ranges are tried; then operators are
restored to floating point (in int4: to int8), those first that disturb the outputs most, twice as many each time, until
the metric holds; then fewer again, to the shortest such list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgemm.bundle.manifest import GateCheck, NodeNote, SpeedCheck
from edgemm.errors import CheckFailed
from edgemm.export.precision.ranges import METHODS, Method
from edgemm.export.precision.recipe import Recipe
from edgemm.export.precision.sensitivity import Noise, loudest_first

Metrics = Mapping[str, float]
_WORST = 10  # rows of the table that a refusal shows


@dataclass(frozen=True)
class AccuracyGate:
    """`measure` gives the metrics of a bundle's directory, `drop` the one that fell most and by how many points.

    `n` is how many examples they are measured on.
    """

    measure: Callable[[Path], Metrics]
    drop: Callable[[Metrics, Metrics], tuple[str, float]]
    max_drop: float
    n: int


@dataclass(frozen=True)
class SpeedGate:
    """`measure` times every component of a bundle against its fp32 sibling, both directories.

    A component fails whose ratio cannot be told from one below `least`; `allow_slower` keeps it all the same.
    """

    measure: Callable[[Path, Path], Sequence[SpeedCheck]]
    least: float
    allow_slower: bool = False


@dataclass(frozen=True)
class Gates:
    """What an export must hold beyond parity."""

    accuracy: AccuracyGate | None = None
    speed: SpeedGate | None = None


NO_GATES = Gates()


@dataclass(frozen=True)
class Choice:
    """How a bundle is quantized: one way to choose ranges, and the operators that are restored.

    `alternatives` says whether the gate may choose another way.
    """

    smooth: bool = True
    method: Method = "mse"
    restored: tuple[Noise, ...] = ()
    alternatives: bool = True

    def recipe(self, component: str) -> Recipe:
        """What is done to one component."""
        return Recipe(self.smooth, self.method, frozenset(n.node for n in self.restored if n.component == component))

    def told(self, recipe: str) -> str:
        """The wording of a recipe in the manifest."""
        if not recipe.endswith(", smoothed"):
            return recipe
        ranges = "" if self.method == "mse" else f", ranges by {self.method}"
        return recipe.removesuffix(", smoothed") + (", smoothed" if self.smooth else "") + ranges


AS_USUAL = Choice()


@dataclass(frozen=True)
class Trial:
    """One way that was measured. `drop` is in points of `metric`, which is the one that fell most."""

    choice: Choice
    metric: str
    before: float
    after: float
    drop: float


@dataclass(frozen=True)
class Settled:
    """What the accuracy gate came to: the trial that holds, all that were made, and the noise of every operator."""

    trial: Trial
    tried: tuple[Trial, ...]
    noises: tuple[Noise, ...]


@dataclass(frozen=True)
class Workshop:
    """What the gate needs of an export: `make` writes a bundle, `noises` measures the operators of one."""

    make: Callable[[Choice], Path]
    noises: Callable[[Choice], list[Noise]]
    step: Callable[[str], None]


@dataclass
class _Search:
    gate: AccuracyGate
    workshop: Workshop
    before: Metrics
    tried: list[Trial] = field(default_factory=list)

    def attempt(self, choice: Choice, what: str) -> Trial:
        self.workshop.step(f"measuring {what}")
        after = self.gate.measure(self.workshop.make(choice))
        metric, drop = self.gate.drop(self.before, after)
        self.tried.append(Trial(choice, metric, self.before[metric], after[metric], drop))
        return self.tried[-1]

    def holds(self, trial: Trial) -> bool:
        return trial.drop <= self.gate.max_drop


def settle(gate: AccuracyGate, workshop: Workshop, whole: Path, start: Choice, *, static: bool) -> Settled:
    """The first choice that holds the metric of the fp32 bundle `whole`.

    `static` says whether there are activation ranges to choose. Raises CheckFailed, with a table of the worst
    operators, where the metric does not hold with all but one of them restored.
    """
    workshop.step("measuring the metric of fp32")
    search = _Search(gate, workshop, gate.measure(whole))
    best = search.attempt(start, "the metric")
    if not search.holds(best) and static:
        others = [search.attempt(c, f"with {_ways(c)}") for c in _alternatives(start)]
        best = min([best, *others], key=lambda t: t.drop)
    noises = loudest_first(workshop.noises(best.choice))
    if not search.holds(best):
        best = _restore(search, best, noises)
    return Settled(best, tuple(search.tried), tuple(noises))


def _alternatives(start: Choice) -> Iterator[Choice]:
    yield replace(start, smooth=not start.smooth)
    if start.alternatives:
        yield from (replace(start, method=m) for m in METHODS if m != start.method)


def _ways(choice: Choice) -> str:
    return f"ranges by {choice.method}, {'smoothed' if choice.smooth else 'not smoothed'}"


def _restore(search: _Search, best: Trial, order: Sequence[Noise]) -> Trial:
    """Restore the first 1, 2, 4, … operators of `order` until the metric holds, then as few as do.

    The last one stays: a bundle with nothing left in int8 is not what was asked for.
    """
    most = len(order) - 1
    if most < 1:
        raise _failure(search, best, order)
    failing, count = 0, 1
    while True:
        trial = search.attempt(replace(best.choice, restored=tuple(order[:count])), f"with {count} restored")
        if search.holds(trial):
            break
        if count == most:
            raise _failure(search, trial, order)
        failing, count = count, min(2 * count, most)
    while count - failing > 1:
        middle = (failing + count) // 2
        fewer = search.attempt(replace(best.choice, restored=tuple(order[:middle])), f"with {middle} restored")
        if search.holds(fewer):
            trial, count = fewer, middle
        else:
            failing = middle
    return trial


def _failure(search: _Search, trial: Trial, order: Sequence[Noise]) -> CheckFailed:
    restored = len(trial.choice.restored)
    even = f", even with {restored} of {len(order)} quantized operators restored" if restored else ""
    error = CheckFailed(
        f"{trial.metric} is {trial.after:.2f} after quantization and {trial.before:.2f} before: {trial.drop:.2f} "
        f"points worse, and at most {search.gate.max_drop:g} were allowed{even}",
        hint="allow more with --max-drop, calibrate on more data with --calib, or export with --fp16",
    )
    error.details = worst_table(order)
    return error


def worst_table(order: Sequence[Noise]) -> str:
    """The loudest operators, one a line."""
    rows = [
        f"{'-' if n.output_db is None else f'{n.output_db:.1f}':>9}  {n.sqnr_db:7.1f}  {n.component:<16} {n.node}"
        for n in order[:_WORST]
    ]
    return "\n".join(["output dB   own dB  component        operator", *rows]) if rows else ""


def gate_check(gate: AccuracyGate, settled: Settled) -> GateCheck:
    """The manifest's entry of what was measured."""
    t = settled.trial
    return GateCheck(metric=t.metric, before=t.before, after=t.after, max_drop=gate.max_drop, n=gate.n)


def notes(settled: Settled) -> tuple[NodeNote, ...]:
    """The manifest's entries of what was restored."""
    above = {"int8": "fp16", "int4": "int8"}
    reason = "weights in {}: {:.1f} dB of signal over noise in {} cost the metric too much"
    return tuple(
        NodeNote(component=n.component, node=n.node, reason=reason.format(above[n.stored], n.sqnr_db, n.stored))
        for n in settled.trial.choice.restored
    )


def check_speed(gate: SpeedGate, found: Sequence[SpeedCheck]) -> None:
    """Raise CheckFailed for components that are not faster by the factor asked for."""
    slow = [s for s in found if s.judged and s.low < gate.least]
    if not slow or gate.allow_slower:
        return
    told = ", ".join(f"{s.component} {s.ratio:.2f}× (95 % interval from {s.low:.2f})" for s in slow)
    raise CheckFailed(
        f"not {gate.least:g} times as fast as fp32 here: {told}",
        hint="keep the fp32 or fp16 bundle on this machine, or add --allow-slower",
    )
