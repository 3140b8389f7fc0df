"""What the gates of an export measure: a bundle's metrics on a data set, and its times beside its fp32 sibling's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.manifest import Component, SpeedCheck
from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.errors import UsageError
from edgemm.measure.bench import LEAST_SHARE, component_call
from edgemm.measure.evaluate import check_rows, evaluate
from edgemm.measure.timing import least_ratio, quantile, taken_ms
from edgemm.model import Model
from edgemm.runtimes.base import SessionOptions
from edgemm.tasks.scoring import METRICS, drops

if TYPE_CHECKING:
    from edgemm.export.precision.gates import Gates

MAX_DROP = 1.0  # points
_RUNTIME = "onnxruntime"
_ENOUGH_MS, _LEAST_ROUNDS, _MOST_ROUNDS = 3000.0, 11, 301


def gates(
    *,
    data: Path | None = None,
    max_drop: float | None = None,
    limit: int | None = None,
    require_speedup: float | None = None,
    allow_slower: bool = False,
) -> Gates:
    """The gates that an export is asked to hold: `max_drop` points on `data`, `require_speedup` times fp32's speed.

    Raises UsageError for half a gate, SourceError and InputError for a data set that `evaluate` would not take.
    """
    from edgemm.export.precision.gates import AccuracyGate, Gates, SpeedGate

    if data is None and max_drop is not None:
        raise UsageError("--max-drop needs data to measure the metric on", hint="add --data PATH")
    if max_drop is not None and max_drop < 0:
        raise UsageError(f"--max-drop {max_drop:g} is below 0", hint="give points, such as 1.0")
    if allow_slower and require_speedup is None:
        raise UsageError("--allow-slower allows nothing by itself", hint="add --require-speedup 1.05")
    if require_speedup is not None and require_speedup <= 0:
        raise UsageError(f"--require-speedup {require_speedup:g} is not above 0", hint="give a factor, such as 1.05")
    accuracy = None
    if data is not None:
        n = check_rows(data, limit=limit)
        most = MAX_DROP if max_drop is None else max_drop
        accuracy = AccuracyGate(lambda bundle: metrics_of(bundle, data, limit=limit), worst_drop, most, n)
    speed = None if require_speedup is None else SpeedGate(speeds, require_speedup, allow_slower)
    return Gates(accuracy, speed)


def metrics_of(bundle: Path, data: Path, *, limit: int | None = None) -> dict[str, float]:
    """The metrics of a bundle's directory on `data`, on ONNX Runtime."""
    with Model(open_bundle(bundle), runtime=_RUNTIME) as model:
        return evaluate(model, data, limit=limit).metrics


def worst_drop(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, float]:
    """The metric that fell most, of those that decide, and by how many points."""
    fell = {name: drop for name, drop in drops(before, after).items() if METRICS[name].decides}
    name = max(fell, key=lambda n: fell[n])
    return name, fell[name]


def speeds(whole: Path, quantized: Path) -> list[SpeedCheck]:
    """Every component that both bundles have in different precisions, timed in the same rounds."""
    bundles = (open_bundle(whole), open_bundle(quantized))
    before, after = ({c.name: c for c in b.manifest.components} for b in bundles)
    found = [_speed(bundles, (before[n], after[n])) for n in after if n in before and _changed(before[n], after[n])]
    total = sum(s.before_ms for s in found)
    return [s.model_copy(update={"judged": s.before_ms >= LEAST_SHARE * total}) for s in found]


def _changed(before: Component, after: Component) -> bool:
    return before.precision != after.precision


def _speed(bundles: tuple[Bundle, Bundle], components: tuple[Component, Component]) -> SpeedCheck:
    with ExitStack() as stack:
        pairs = zip(("before", "after"), bundles, components, strict=True)
        calls = {key: component_call(b, c, _RUNTIME, SessionOptions(), stack) for key, b, c in pairs}
        taken = taken_ms(calls, _rounds(calls))
    before, after = (round(quantile(taken[key], 0.5), 4) for key in ("before", "after"))
    return SpeedCheck(
        component=components[0].name,
        runtime=_RUNTIME,
        before_ms=before,
        after_ms=after,
        ratio=round(before / max(after, 1e-6), 3),
        low=least_ratio(taken["before"], taken["after"]),
    )


def _rounds(calls: Mapping[str, Callable[[], object]]) -> int:
    """As many as fit in a few seconds, and enough for an interval."""
    once_ms = sum(min(taken) for taken in taken_ms(calls, 2).values())
    return round(min(_MOST_ROUNDS, max(_LEAST_ROUNDS, _ENOUGH_MS / max(once_ms, 1e-3))))
