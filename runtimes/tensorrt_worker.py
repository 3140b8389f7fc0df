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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import BundleError, EdgemmError
from edgemm.runtimes.lowering.lints import findings
from edgemm.runtimes.lowering.pairing import SPARE, Arrays, in_pairs
from edgemm.runtimes.lowering.tensorrt import halved, lower, read, save
from edgemm.runtimes.tensorrt_api import Api

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Job:
    """What to build. `profile` has the least, usual and greatest shape of every input, `checks` shapes to compare at.

    `half` makes fp32 numbers fp16, `cosine` is the least likeness of the lowered graph to the portable one.
    """

    target: str
    graph: str
    output: str
    scratch: str
    gpus: tuple[str, ...]
    half: bool
    cosine: float
    profile: dict[str, list[list[int]]]
    checks: list[Shapes]


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
        "warnings": [line[:300] for line in warned[:20]],
    }


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
    likeness = min((_likeness(exact, path, shapes, in_rows=picks) for shapes in job.checks), default=1.0)
    if not likeness >= job.cosine:
        raise BundleError(
            f"the graph lowered for {job.target} differs from {Path(job.graph).name}: "
            f"cosine {likeness:.5f}, at least {job.cosine} expected"
        )
    return path, likeness


def _likeness(portable: Path, lowered: Path, shapes: Shapes, *, in_rows: bool) -> float:
    """The least cosine between the outputs of two graphs, on the same random inputs; `in_rows` pairs their rows."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    runs: list[Arrays] = []
    for path in (portable, lowered):
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: _input(i.name, shapes[i.name], _dtype(i.type)) for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        runs.append(dict(zip(names, session.run(names, feeds), strict=True)))
    portable_run, lowered_run = runs
    if in_rows:
        portable_run, lowered_run = in_pairs(portable_run, lowered_run, SPARE)
    pairs = ((portable_run[name], lowered_run[name]) for name in portable_run)
    return min((_cosine(a, b) for a, b in pairs if a.size), default=1.0)


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
