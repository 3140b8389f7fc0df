"""One engine, built in a process of its own: `python -m edgemm.runtimes.tensorrt_worker JOB.json`.

The libraries write to the terminal, take gigabytes and may crash; none of that is the caller's. Every line of stdout is
a JSON object: `{"at": …, "share": …}` while it works, then `{"built": {…}}` or `{"error": {…}}`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import BundleError, EdgemmError
from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering import fixed_state
from edgemm.runtimes.lowering.graph import Unrecognised
from edgemm.runtimes.lowering.lints import findings
from edgemm.runtimes.lowering.pairing import SPARE, Arrays, in_pairs
from edgemm.runtimes.lowering.tensorrt import halved, lower, read, save
from edgemm.runtimes.tensorrt_api import Api

Shapes = dict[str, list[int]]
Ranges = dict[str, list[list[int]]]

# Masked columns add exact zeros; a sum in another order is all that may differ, in fp16 too.
_SAME = 0.9999


@dataclass(frozen=True)
class Job:
    """What to build. `profile` has the least, usual and greatest shape of every input, `checks` shapes to compare at.

    `half` makes fp32 numbers fp16, `cosine` is the least likeness of the lowered graph to the portable one. A decoder
    has `states` ((input, output, shape, growth axis) each) and `fixed`, the profile that it has over buffers.
    """

    target: str
    graph: str
    output: str
    scratch: str
    gpus: tuple[str, ...]
    half: bool
    cosine: float
    profile: Ranges
    checks: list[Shapes]
    states: list[tuple[str, str, list[int], int]] = field(default_factory=list)
    fixed: Ranges = field(default_factory=dict)


def main(path: str) -> None:
    """Build the engine of the job at `path`. The terminal's own stdout is kept from the library."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        print(json.dumps(what), file=out, flush=True)

    try:
        say(built=_build(Job(**json.loads(Path(path).read_text())), say))
    except EdgemmError as error:
        say(error={"type": type(error).__name__, "message": error.message, "hint": error.hint})


def _build(job: Job, say: Any) -> dict[str, Any]:
    start = time.perf_counter()
    say(at="lowering", share=0.0)
    api = Api(job.target)
    job, growing = _over_buffers(job)
    lowered, checked = _lowered(job)
    say(at="building", share=0.1)
    used = {name: shapes for name, shapes in job.profile.items() if shapes[0] != shapes[2]}
    engine, warned = api.build(lowered, used, job.gpus, lambda at, share: say(at=at, share=0.1 + 0.9 * share))
    with open(job.output, "wb") as file:
        file.write(engine)
        file.flush()
        os.fsync(file.fileno())
    return {
        "version": api.version,
        "seconds": time.perf_counter() - start,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cosine": checked,
        "profile": job.profile,
        "warnings": [*growing, *(line[:300] for line in warned[:20])],
    }


def _over_buffers(job: Job) -> tuple[Job, list[str]]:
    """The job of the same decoder over buffers of a fixed size; the old one, and why, where its state must grow."""
    if not job.fixed:
        return job, []
    states = [StatePort(name, output, tuple(shape), axis) for name, output, shape, axis in job.states]
    try:
        graph = fixed_state.lower(Path(job.graph), states, job.profile["attention_mask"][2][1])
    except Unrecognised as reason:
        return job, [f"its state grows with every token: {reason}"]
    folder = Path(job.scratch) / "fixed"
    folder.mkdir()
    path = graph.save(folder, Path(job.graph).stem)
    fixed = replace(job, graph=str(path), profile=job.fixed, checks=checks(job.fixed))
    sessions = (_session(Path(job.graph)), _session(path))
    likeness = min((_buffered_likeness(*sessions, states, shapes) for shapes in job.checks), default=1.0)
    if not likeness >= _SAME:
        raise BundleError(f"{Path(job.graph).name} over buffers differs from itself: cosine {likeness:.6f}")
    return fixed, []


def _buffered_likeness(growing: Any, buffered: Any, states: Sequence[StatePort], shapes: Shapes) -> float:
    """The least cosine between a decoder's outputs with a growing state, and over buffers that are larger."""
    feeds = {i.name: _input(i.name, shapes[i.name], _dtype(i.type)) for i in growing.get_inputs()}
    new, total = feeds["inputs_embeds"].shape[1], feeds["attention_mask"].shape[1]
    others = {fixed_state.PLACES: np.arange(total - new, total)}
    for name in ("attention_mask", *(s.input for s in states)):
        axis = 1 if name == "attention_mask" else 2
        spare = [(0, 0)] * feeds[name].ndim
        spare[axis] = (0, total + 3 - feeds[name].shape[axis])
        others[name] = np.pad(feeds[name], spare)
    names = [o.name for o in growing.get_outputs()]
    one = dict(zip(names, growing.run(names, feeds), strict=True))
    other = dict(zip(names, buffered.run(names, feeds | others), strict=True))
    for state in states:
        other[state.output] = other[state.output][:, :, :total]
    return min((_cosine(one[name], other[name]) for name in names if one[name].size), default=1.0)


def _lowered(job: Job) -> tuple[Path, float]:
    """The file of the graph that is built, and its least cosine in ONNX Runtime to the one before it was halved."""
    model = lower(read(Path(job.graph)))
    found = findings(model, job.gpus)
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise BundleError(f"{job.target} cannot build {Path(job.graph).name}: {found[0]}{more}")
    exact = path = save(model, Path(job.scratch), "exact")
    if job.half:
        path = save(halved(read(exact)), Path(job.scratch), "half")
    # Rows that are picked by score may come in another order in half precision.
    picks = any(node.op_type == "TopK" for node in model.graph.node)
    sessions = [_session(file) for file in dict.fromkeys((exact, path))]
    likeness = min((_likeness(sessions, shapes, in_rows=picks) for shapes in job.checks), default=1.0)
    if not likeness >= job.cosine:
        raise BundleError(
            f"the graph lowered for {job.target} differs from {Path(job.graph).name}: "
            f"cosine {likeness:.5f}, at least {job.cosine} expected"
        )
    return path, likeness


def _likeness(sessions: Sequence[Any], shapes: Shapes, *, in_rows: bool) -> float:
    """The least cosine between the outputs of two graphs, on the same random inputs; `in_rows` pairs their rows.

    Of one graph it says whether it runs and gives numbers.
    """
    runs: list[Arrays] = []
    for session in sessions:
        feeds = {i.name: _input(i.name, shapes[i.name], _dtype(i.type)) for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        runs.append(dict(zip(names, session.run(names, feeds), strict=True)))
    portable_run, lowered_run = runs[0], runs[-1]
    if in_rows:
        portable_run, lowered_run = in_pairs(portable_run, lowered_run, SPARE)
    pairs = ((portable_run[name], lowered_run[name]) for name in portable_run)
    return min((_cosine(a, b) for a, b in pairs if a.size), default=1.0)


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def checks(ranges: Ranges) -> list[Shapes]:
    """The shapes at which a lowered graph is compared with the portable one: the least and the usual."""
    return [{name: shapes[k] for name, shapes in ranges.items()} for k in (0, 1)]


def _dtype(kind: str) -> np.dtype[Any]:
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "float16": "float16", "double": "float64"}.get(name, name))


def _input(name: str, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers that every graph admits: ids near 0, masks of ones, positions in order."""
    if dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if name.endswith("mask"):
        return np.ones(shape, dtype)
    if name == "input_ids":
        return (np.arange(int(np.prod(shape))) % 8).reshape(shape).astype(dtype)
    if name == fixed_state.PLACES:
        return np.arange(shape[0], dtype=dtype)
    if name == "position_ids":
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    return np.zeros(shape, dtype)


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float(np.allclose(x, y))


def job_text(job: Job) -> str:
    """What `main` reads."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    main(sys.argv[1])
