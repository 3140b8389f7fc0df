"""How fast a bundle is here: each component on each runtime, and each task as a whole."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import Component, Dim, TensorInfo
from edgemm.bundle.opening import Bundle
from edgemm.errors import CheckFailed, EdgemmError, InputError
from edgemm.measure.timing import Times, interleaved, least_ratio, taken_ms, times_of
from edgemm.model import Model
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions
from edgemm.tasks.graphs import Graphs

Progress = Callable[[str, float], None]
Figures = dict[str, dict[str, float]]  # bundle key → figure → value
RATE_HZ = 16_000
QUESTION = "What is in the picture?"
_OTHER = "other "
LEAST_SHARE = 0.02  # of a bundle's time: below it a component's own speed changes nothing
_SLOW = "keep the other one on this machine, or measure again with more --rounds"
_SYNTHETIC_S = 5.0
_NUMPY: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32,
    "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What tasks are timed on: a picture, uint8 [H, W, 3], and sound, float32 [samples], 16 kHz."""

    image: NDArray[np.uint8]
    samples: NDArray[np.float32]
    name: str


@dataclass(frozen=True)
class Bench:
    """`components`: name → runtime → times and precision. `tasks`: task → its figures."""

    components: dict[str, dict[str, dict[str, Any]]]
    tasks: dict[str, dict[str, float]]
    peak_rss_mb: float
    rounds: int
    input: str
    against: dict[str, Any] | None = None
    ratio: dict[str, dict[str, float]] | None = None
    ratio_least: dict[str, dict[str, float]] | None = None


def bench(
    bundle: Bundle,
    *,
    against: Bundle | None = None,
    rounds: int = 20,
    data: Path | None = None,
    runtime: str = "auto",
    options: SessionOptions | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Bench:
    """Time `bundle` (and `against`, in the same rounds).

    `data` is a picture, a sound or a video for the tasks. `ratio` is component → runtime → how many
    times faster `bundle` is than `against`, and `ratio_least` the lower end of its
    95 % interval. A component that a runtime cannot load has an `error`
    instead of times. Raises InputError for no rounds, SourceError for unusable `data`.
    """
    if rounds < 1:
        raise InputError(f"{rounds} rounds measure nothing", hint="give 1 or more")
    options = options or SessionOptions()
    inputs = task_inputs(data)
    bundles = {"": bundle} | ({_OTHER: against} if against else {})
    names = [c.name for c in bundle.manifest.components]
    names += [c.name for c in against.manifest.components if c.name not in names] if against else []
    parts: dict[str, dict[str, dict[str, dict[str, Any]]]] = {key: {} for key in bundles}
    least: dict[str, dict[str, float]] = {}
    for number, name in enumerate(names):
        progress(name, number / (len(names) + 1))
        found, taken = _component(bundles, name, rounds, options)
        for key, times in found.items():
            parts[key][name] = times
        pairs = {r: (taken[_OTHER + r], own) for r, own in taken.items() if _OTHER + r in taken}
        if pairs:
            least[name] = {runtime: least_ratio(*pair) for runtime, pair in pairs.items()}
    progress("tasks", len(names) / (len(names) + 1))
    tasks = _tasks(bundles, inputs, rounds, runtime, options)
    result = Bench(parts[""], tasks[""], _peak_rss_mb(), rounds, inputs.name)
    if against is None:
        return result
    other = {"components": parts[_OTHER], "tasks": tasks[_OTHER]}
    return replace(result, against=other, ratio=_ratios(parts[""], parts[_OTHER]), ratio_least=least)


def check_gate(found: Bench, least: float) -> None:
    """Raise CheckFailed where a component, on a runtime, cannot be told to be `least` times as fast as the other's.

    Components that take under 2 % of the other bundle's time on that runtime are not judged.
    """
    assert found.against is not None
    slow = []
    for name, runtimes in (found.ratio_least or {}).items():
        for runtime, low in runtimes.items():
            before = {n: r.get(runtime, {}).get("median_ms", 0.0) for n, r in found.against["components"].items()}
            if before[name] >= LEAST_SHARE * sum(before.values()) and low < least:
                slow.append(f"{name} on {runtime} {(found.ratio or {})[name][runtime]:.2f}× (from {low:.2f})")
    if slow:
        raise CheckFailed(f"not {least:g} times as fast as the other bundle: {', '.join(slow)}", hint=_SLOW)


def task_inputs(data: Path | None) -> Inputs:
    """The first frame and the first half minute of sound of `data`, or seeded noise."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((40, 40, 1), np.uint8))
    t = np.arange(int(_SYNTHETIC_S * RATE_HZ)) / RATE_HZ
    sound = 0.2 * np.sin(2 * np.pi * 180 * t) * (np.sin(2 * np.pi * 2.5 * t) > 0)
    inputs = Inputs(image, sound.astype(np.float32), "synthetic")
    if data is None:
        return inputs
    from edgemm.processing.audio import load_audio, to_mono_16k
    from edgemm.processing.image import to_rgb
    from edgemm.processing.media import iter_video, sniff

    kind = sniff(data)
    if kind != "audio":
        picture = to_rgb(data) if kind == "image" else next(iter_video(data)).image
        inputs = replace(inputs, image=picture)
    if kind != "image":
        try:
            mono = to_mono_16k(*load_audio(data))[: 30 * RATE_HZ]
            inputs = replace(inputs, samples=mono)
        except EdgemmError:
            if kind == "audio":
                raise
    return replace(inputs, name=str(data))


def _component(
    bundles: dict[str, Bundle], name: str, rounds: int, options: SessionOptions
) -> tuple[dict[str, dict[str, dict[str, Any]]], dict[str, list[float]]]:
    """Bundle's key → runtime → times of one component, all of them in the same rounds; and every single time."""
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with ExitStack() as stack:
        for key, bundle in bundles.items():
            own = {c.name: c for c in bundle.manifest.components}
            if name not in own:
                continue
            for runtime, it in registry.RUNTIMES.items():
                if not it.installed or it.missing:
                    continue
                entry = found.setdefault(key, {})[runtime] = {"precision": own[name].precision}
                try:
                    call = component_call(bundle, own[name], runtime, options, stack)
                    call()
                except EdgemmError as error:
                    entry["error"] = error.message
                    continue
                calls[f"{key}{runtime}"] = call
        taken = taken_ms(calls, rounds)
        for where, times in taken.items():
            key = _OTHER if where.startswith(_OTHER) else ""
            found[key][where.removeprefix(_OTHER)] |= asdict(times_of(times))
    return found, taken


def component_call(
    bundle: Bundle, component: Component, runtime: str, options: SessionOptions, stack: ExitStack
) -> Callable[[], object]:
    """One call of a component, until `stack` ends: with inputs at the manifest's opt sizes; for a decoder, one step."""
    entry = next(m for m in bundle.manifest.models if m.name == component.model)
    graphs = Graphs(bundle, entry, runtime, options)
    stack.callback(graphs.close)
    if component.role == "decoder" and bundle.manifest.states_of(component.name):
        return _step(graphs, component)
    session = graphs.session(component.role)
    feeds = {i.name: _array(i, lambda d: d.opt) for i in component.inputs}
    return lambda: session.run(feeds)


def _step(graphs: Graphs, component: Component) -> Callable[[], object]:
    """One token at half of the context, which is where a decoder is on average."""
    decoder = graphs.decoder()
    past = max(1, decoder.capacity // 2)
    by_name = {i.name: i for i in component.inputs}
    embeds = by_name["inputs_embeds"]
    cross = {n: _array(i, lambda d: d.opt) for n, i in by_name.items() if n.startswith("cross")}
    before = _array(embeds, lambda d: past if d.name == "new" else d.opt)
    decoder.prefill(before, cross=cross or None)
    one = _array(embeds, lambda d: 1 if d.name == "new" else d.opt)

    def step() -> None:
        if decoder.length >= decoder.capacity - 1:
            decoder.truncate(past)
        decoder.step(one)

    return step


def _array(info: TensorInfo, size: Callable[[Dim], int]) -> NDArray[Any]:
    shape = tuple(max(1, size(d)) for d in info.dims)
    dtype = _NUMPY[info.dtype]
    if not np.issubdtype(dtype, np.floating):
        return np.ones(shape, dtype)
    values: NDArray[Any] = 0.1 * np.random.default_rng(5).standard_normal(shape)
    return values.astype(dtype)


def _tasks(
    bundles: dict[str, Bundle], inputs: Inputs, rounds: int, runtime: str, options: SessionOptions
) -> dict[str, dict[str, dict[str, float]]]:
    models = {key: Model(b, runtime=runtime, options=options) for key, b in bundles.items()}
    found: dict[str, dict[str, dict[str, float]]] = {key: {} for key in bundles}
    try:
        for task, measure in _MEASURES.items():
            able = {key: model for key, model in models.items() if task in model.tasks}
            if able:
                for key, figures in measure(able, inputs, rounds).items():
                    found[key][task] = figures
    finally:
        for model in models.values():
            model.close()
    return found


def _classify(models: dict[str, Model], inputs: Inputs, rounds: int) -> Figures:
    times = interleaved({k: partial(m.classify, inputs.image) for k, m in models.items()}, rounds)
    return {k: {"fps": round(1e3 / t.median_ms, 2)} | _times(t) for k, t in times.items()}


def _detect(models: dict[str, Model], inputs: Inputs, rounds: int) -> Figures:
    times = interleaved({k: partial(m.detect, inputs.image) for k, m in models.items()}, rounds)
    return {k: {"fps": round(1e3 / t.median_ms, 2)} | _times(t) for k, t in times.items()}


def _transcribe(models: dict[str, Model], inputs: Inputs, rounds: int) -> Figures:
    audio_ms = len(inputs.samples) / RATE_HZ * 1e3
    rounds = max(3, rounds // 4)  # seconds of work each
    calls = {k: partial(m.transcribe, inputs.samples) for k, m in models.items()}
    times = interleaved(calls, rounds)
    return {k: {"rtf": round(t.median_ms / audio_ms, 5)} | _times(t) for k, t in times.items()}


def _answer(models: dict[str, Model], inputs: Inputs, rounds: int) -> Figures:
    """Time to the first token, and between the ones after it: medians."""
    found = {}
    for key, model in models.items():
        first, between = [], []
        for _ in range(max(3, rounds // 4)):
            said = model.answer([inputs.image], QUESTION, max_new_tokens=16)
            first.append(said.ttft_ms)
            if len(said.tokens) > 1:
                between.append((said.model_ms - said.ttft_ms) / (len(said.tokens) - 1))
        figures = {"ttft_ms": round(float(np.median(first)), 3)}
        if between:
            figures["ms_per_token"] = round(float(np.median(between)), 3)
        found[key] = figures
    return found


_MEASURES: dict[str, Callable[[dict[str, Model], Inputs, int], Figures]] = {
    "classify": _classify,
    "detect": _detect,
    "transcribe": _transcribe,
    "answer": _answer,
}


def _times(times: Times) -> dict[str, float]:
    return {"median_ms": times.median_ms, "p99_ms": times.p99_ms}


def _ratios(
    own: dict[str, dict[str, dict[str, Any]]], other: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, dict[str, float]]:
    ratios: dict[str, dict[str, float]] = {}
    for name, runtimes in own.items():
        for runtime, figures in runtimes.items():
            base = other.get(name, {}).get(runtime, {})
            if "median_ms" in figures and "median_ms" in base:
                ratio = base["median_ms"] / max(figures["median_ms"], 1e-6)
                ratios.setdefault(name, {})[runtime] = round(ratio, 3)
    return ratios


def _peak_rss_mb() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
