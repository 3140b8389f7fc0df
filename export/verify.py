"""Parity: every component against its original module, at sizes that it was not traced at."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.bundle.manifest import SMALL, ParityCheck, Precision
from edgemm.errors import CheckFailed, EdgemmError
from edgemm.export.graph import Feeds, GraphPlan
from edgemm.runtimes import registry
from edgemm.runtimes.base import Session, SessionOptions, as_numpy
from edgemm.runtimes.lowering.pairing import SPARE, in_pairs


@dataclass(frozen=True)
class Tolerance:
    """The worst difference that a precision may show against the original in fp32."""

    max_abs: float
    cosine: float


# int8 and int4 are judged by the task's metric; the cosine only catches a graph that is wrong.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-4, 0.99999),
    "fp16": Tolerance(float("inf"), 0.999),
    "int8": Tolerance(float("inf"), 0.9),
    "int4": Tolerance(float("inf"), 0.7),
}

_MEND = "this family needs mending before it can be exported"
_RESTORE = "add --data PATH: the layers that lose most are then restored until the metric holds"
_ENOUGH_S = 6.0

Arrays = Mapping[str, NDArray[Any]]
_Case = tuple[Feeds, Arrays]  # inputs, and what the graph made of them


def compare(original: Arrays, found: Arrays) -> tuple[float, float]:
    """Largest absolute difference (relative to the tensor's scale where that is above 1) and least cosine."""
    worst, cosine = 0.0, 1.0
    for name, want in original.items():
        a = np.asarray(want, np.float64).ravel()
        b = np.asarray(found[name], np.float64).ravel()
        if a.size == 0:
            continue
        if not np.isfinite(b).all():
            return float("inf"), -1.0
        scale = max(1.0, float(np.abs(a).max()))
        worst = max(worst, float(np.abs(a - b).max()) / scale)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = min(cosine, float(a @ b) / norms if norms > 0 else float(np.allclose(a, b)))
    return worst, cosine


def aligned(plan: GraphPlan, original: Arrays, found: Arrays, spare: float = 0.0) -> tuple[Arrays, Arrays]:
    """The two outputs of an `unordered` graph with their rows paired; of another graph, as they are.

    The share `spare` of the pairs, the least alike, is left out: below fp32 the last picked queries may be others.
    """
    if not plan.unordered:
        return original, found
    return in_pairs(original, found, spare)


def check_component(
    plan: GraphPlan,
    path: Path,
    name: str,
    precision: Precision,
    *,
    real: Sequence[Arrays] = (),
    runtime: str = "onnxruntime",
) -> ParityCheck:
    """Compare a written graph with its module at every check size, or on `real` inputs where they are given.

    Raises CheckFailed beyond the precision's tolerance, and where an input does not move any output.
    """
    tolerance = TOLERANCES[precision]
    session = registry.module(runtime).load_session(
        path,
        SessionOptions(int8_weights=precision in SMALL and plan.weights_alone),
    )
    done: list[_Case] = []
    worst, cosine = 0.0, 1.0
    try:
        for feeds in _cases(plan, real):
            found = _found(session, feeds, name)
            spare = 0.0 if precision == "fp32" else SPARE
            difference, likeness = compare(*aligned(plan, plan.run(feeds), found, spare))
            worst, cosine = max(worst, difference), min(cosine, likeness)
            done.append((feeds, found))
        if precision == "fp32" and not _sole_input_moves(plan, done):
            check_alive(plan, session, name, _telling(plan, done))
    finally:
        session.close()
    if worst > tolerance.max_abs or cosine < tolerance.cosine:
        raise CheckFailed(
            f"{name} differs from the original: max abs {worst:.2e} (at most {tolerance.max_abs:.0e}), "
            f"cosine {cosine:.6f} (at least {tolerance.cosine})",
            hint=_MEND if precision in ("fp32", "fp16") else _RESTORE,
        )
    return ParityCheck(
        component=name,
        precision=precision,
        max_abs=worst,
        cosine=cosine,
        shapes=len(done),
    )


def _run(session: Session, feeds: Feeds) -> dict[str, NDArray[Any]]:
    values = session.run({k: v.numpy() for k, v in feeds.items()})
    return {k: as_numpy(v) for k, v in values.items()}


def _found(session: Session, feeds: Feeds, name: str) -> dict[str, NDArray[Any]]:
    try:
        return _run(session, feeds)
    except EdgemmError as error:
        shapes = {k: list(v.shape) for k, v in feeds.items()}
        raise CheckFailed(f"{name} cannot run at {shapes}: {error.message}") from error


def _cases(plan: GraphPlan, real: Sequence[Arrays]) -> Iterator[Feeds]:
    """Real inputs where they are given, else those of every check size, and the traced one last.

    Drawn as they are needed: a graph so large that the other sizes took `_ENOUGH_S` is spared the traced one, which
    says least.
    """
    if real:
        yield from ({k: torch.from_numpy(v) for k, v in r.items()} for r in real)
        return
    start = time.perf_counter()
    for seed, sizes in enumerate(plan.checks, start=1):
        yield plan.feeds(sizes, seed)
    if not plan.checks or time.perf_counter() - start < _ENOUGH_S:
        yield plan.feeds(plan.trace)


def _telling(plan: GraphPlan, done: Sequence[_Case]) -> _Case:
    """The case of the traced size; where that was left out, the smallest of those without an empty input."""
    if len(done) > len(plan.checks):
        return done[-1]
    whole = [case for case in done if all(v.numel() for v in case[0].values())]
    return min(whole, key=lambda case: sum(v.numel() for v in case[0].values()))


def _sole_input_moves(plan: GraphPlan, done: Sequence[_Case]) -> bool:
    """Whether two cases show that the only input moves an output: a run of a large encoder is spared."""
    if len(plan.inputs) > 1 or len(done) < 2:
        return False
    (_, a), (_, b) = done[:2]
    heads = ((a[k].ravel(), b[k].ravel()) for k in a)
    return any(not np.allclose(x[: y.size], y[: x.size], atol=1e-6) for x, y in heads)


def check_alive(plan: GraphPlan, session: Session, name: str, case: _Case) -> None:
    """Raise CheckFailed where a floating-point input of `case`, inputs and outputs, does not move any output."""
    feeds, before = case
    for port in plan.inputs:
        if not port.dtype.is_floating_point:
            continue
        moved = dict(feeds)
        rng = torch.Generator().manual_seed(99)
        moved[port.name] = torch.randn(feeds[port.name].shape, generator=rng).to(port.dtype)
        after = _run(session, moved)
        if all(np.allclose(before[k], after[k], atol=1e-6) for k in before):
            raise CheckFailed(
                f"{name} does not listen to its input {port.name}: a modality is dead",
                hint="this family needs mending before it can be exported",
            )


def token_agreement(pairs: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """Share of examples whose token ids are the same from first to last."""
    equal = [a == b for a, b in pairs]
    return sum(equal) / len(equal) if equal else 1.0
