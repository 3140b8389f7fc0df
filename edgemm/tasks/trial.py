"""A component on several runtimes in turns, for a second or so: what the choice between them is made by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import Component, TensorInfo
from edgemm.errors import EdgemmError
from edgemm.runtimes.base import Decoder, Session

BUDGET_S = 1.5
"""For all runtimes of one component together, loading apart."""

_LEAST, _MOST = 1, 15
_PAST = 64

Load = Callable[[str], Session | Decoder]
"""A runtime's name → the component, loaded."""


def compare(component: Component, names: Sequence[str], load: Load, *, stateful: bool) -> dict[str, float]:
    """Runtime → median milliseconds at the manifest's usual sizes; for a decoder, of one token.

    A runtime that cannot load or run the component is left out.
    """
    calls: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for name in names:
            try:
                loaded = load(name)
                stack.callback(loaded.close)
                call = _step(loaded, component) if stateful else _run(loaded, component)  # type: ignore[arg-type]
                call()
            except EdgemmError:
                continue
            calls[name] = call
        return {name: statistics.median(times) for name, times in _in_turns(calls).items()}


def _in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + BUDGET_S
    for turn in range(_MOST):
        if turn >= _LEAST and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _run(session: Session, component: Component) -> Callable[[], object]:
    feeds = {i.name: _filled(i, {}) for i in component.inputs}
    return lambda: session.run(feeds)


def _step(decoder: Decoder, component: Component) -> Callable[[], object]:
    inputs = {i.name: i for i in component.inputs}
    past = max(1, min(_PAST, decoder.capacity // 2))
    cross = {n: _filled(i, {}) for n, i in inputs.items() if n.startswith("cross.")}
    decoder.reset()
    decoder.prefill(_filled(inputs["inputs_embeds"], {"batch": 1, "new": past}), cross=cross or None)
    one = _filled(inputs["inputs_embeds"], {"batch": 1, "new": 1})

    def step() -> None:
        if decoder.length >= decoder.capacity:
            decoder.truncate(past)
        decoder.step(one)

    return step


def _filled(info: TensorInfo, sizes: dict[str, int]) -> NDArray[Any]:
    shape = tuple(max(1, sizes.get(d.name or "", d.opt)) for d in info.dims)
    dtype = np.dtype(info.dtype)
    if dtype.kind != "f":
        return np.ones(shape, dtype)
    return (0.1 * np.random.default_rng(5).standard_normal(shape)).astype(dtype)
