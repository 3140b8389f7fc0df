"""Engines: a component compiled for one kind of machine, beside the portable graph that it came from.

An engine is a file `engines/<component>.<target>.<options>.engine` with a note of the same name in JSON, which is the
contract: what it was built from, by what, for which machines. Both lie in the bundle where it can be written, else in
the user's cache. An engine is used only if it is fresh: whole, of this very graph, by the library that is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgemm import errors
from edgemm.bundle.adding import adding
from edgemm.bundle.files import cache_dir, sha256_of, storage_errors
from edgemm.bundle.manifest import SMALL, Component, Engine, Sha256, State
from edgemm.bundle.opening import Bundle
from edgemm.bundle.writing import write_manifest
from edgemm.errors import BundleError, EdgemmError, StorageError
from edgemm.runtimes import cuda
from edgemm.runtimes.base import state_port
from edgemm.runtimes.lowering.fixed_state import PLACES, buffer_size
from edgemm.runtimes.tensorrt_worker import Job, Ranges, checks, job_text

FOLDER = "engines"
FORM = 2
"""Raised whenever a graph is lowered in another way."""

_SUFFIX = ".engine"
# TensorRT-RTX 1.7, ten graphs up to 560 MB: the peak was below 0.8 GB and 3.3 times the weights.
_BASE_BYTES, _PER_WEIGHT_BYTE = 800_000_000, 3.3
# An fp32 or fp16 graph is built as it is. Halving costs Moonshine's encoder 0.01 on short noise, more than any other:
# this catches a graph that is wrong, and says nothing of a task's accuracy.
_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "half": 0.98}

Tell = Callable[[str, float], None]


class Note(BaseModel):
    """What is known of one engine: the JSON beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine
    graph_sha256: Sha256
    profile: Ranges
    cosine: float | None = None
    peak_rss_mb: float
    warnings: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return f"{self.engine.component}.{self.engine.target}.{self.engine.options_sha256[:12]}"


@dataclass(frozen=True)
class Found:
    """An engine on disk, and why it cannot be used (nothing if it can)."""

    path: Path
    note: Note
    stale: str


def profile(component: Component) -> Ranges:
    """Least, usual and greatest shape of every input; where past and new meet, `total` is their sum in each."""
    dims = {d.name: d for i in component.inputs for d in i.dims if d.name}
    ranges = {name: [d.min, d.opt, d.max] for name, d in dims.items()}
    if {"past", "new", "total"} <= ranges.keys():
        ranges["total"] = [p + n for p, n in zip(ranges["past"], ranges["new"], strict=True)]
    return {
        i.name: [[ranges[d.name][k] if d.name else d.opt for d in i.dims] for k in range(3)] for i in component.inputs
    }


def fixed_profile(component: Component, states: Sequence[State]) -> Ranges:
    """The profile of a decoder whose states are buffers; nothing of a component without states or a causal mask."""
    ranges = profile(component)
    if not states or "attention_mask" not in ranges:
        return {}
    least, usual, most = (shape[1] for shape in ranges["attention_mask"])
    sizes = [least, buffer_size(usual, most), most]
    ranges["attention_mask"] = [[shape[0], size] for shape, size in zip(ranges["attention_mask"], sizes, strict=True)]
    for port in map(state_port, states):
        for shape, size in zip(ranges[port.input], sizes, strict=True):
            shape[port.growth_axis] = size
    return ranges | {PLACES: [[shape[1]] for shape in ranges["inputs_embeds"]]}


def engines_of(bundle: Bundle, builder: str = "", *, component: str = "", target: str = "") -> Iterator[Found]:
    """Every engine of a bundle, in the bundle and in the cache; `builder` as in `Engine.builder`.

    Only those of one component or target where these are named.
    """
    for folder in (bundle.path / FOLDER, cache_dir(FOLDER, bundle_key(bundle))):
        for path in sorted(folder.glob("*.json")):
            try:
                note = Note.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue
            if component not in ("", note.engine.component) or target not in ("", note.engine.target):
                continue
            engine = path.with_suffix(_SUFFIX)
            yield Found(engine, note, stale(engine, note, bundle, builder))


def stale(path: Path, note: Note, bundle: Bundle, builder: str = "") -> str:
    """Why an engine cannot be used; empty where it can. Nothing of it is loaded."""
    components = {c.name: c for c in bundle.manifest.components}
    component = components.get(note.engine.component)
    if component is None:
        return f"the bundle has no component {note.engine.component}"
    if note.graph_sha256 != graph_hash(bundle, component):
        return "it was built from another graph"
    if builder and note.engine.builder != builder:
        return f"it was built by {note.engine.builder}, {builder} is installed"
    try:
        if path.stat().st_size != note.engine.bytes:
            return f"it is torn: {path.stat().st_size} bytes, {note.engine.bytes} expected"
        if sha256_of(path) != note.engine.sha256:
            return "it was changed after it was built"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


def graph_hash(bundle: Bundle, component: Component) -> str:
    """SHA-256 over the component's graph and weights, which the manifest has one by one."""
    files = (component.file, *component.weights)
    return hashlib.sha256("".join(bundle.manifest.files[f].sha256 for f in files).encode()).hexdigest()


def bundle_key(bundle: Bundle) -> str:
    """Names a bundle by its graphs: the same before and after engines were added."""
    hashes = "".join(sorted(graph_hash(bundle, c) for c in bundle.manifest.components))
    return hashlib.sha256(hashes.encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """An engine that is to be built. `digest` names it: the graph, how it is lowered, for what.

    `gpus` are those that it will run on; tensorrt is not told, it builds for the one that is here. `ranges` is the
    profile, `fixed` that of a decoder over buffers of a fixed size.
    """

    component: Component
    target: str
    gpus: tuple[str, ...]
    half: bool
    ranges: Ranges
    fixed: Ranges
    graph: str
    digest: str


def plan(bundle: Bundle, component: Component, target: str, gpus: Sequence[str]) -> Plan:
    """What building `component` for `target` means; numbers that an int8 graph has in fp32 become fp16."""
    half = component.precision in SMALL
    ranges, graph = profile(component), graph_hash(bundle, component)
    fixed = fixed_profile(component, bundle.manifest.states_of(component.name))
    about = {"form": FORM, "target": target, "gpus": list(gpus), "half": half, "profile": ranges, "graph": graph}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Plan(component, target, tuple(gpus), half, ranges, fixed, graph, digest)


def build(bundle: Bundle, planned: Plan, scratch: Path, tell: Tell) -> tuple[Path, Note]:
    """Build one engine in a process of its own; its file in `scratch`, and its note.

    Raises BundleError where the graph cannot be built or memory is short, UsageError for an unknown GPU,
    RuntimeUnavailable.
    """
    component = planned.component
    _check_memory(bundle, planned)
    output = scratch / f"{component.name}{_SUFFIX}"
    job = Job(
        target=planned.target,
        graph=str(bundle.file(component.file)),
        output=str(output),
        scratch=str(scratch),
        gpus=planned.gpus if planned.target == "tensorrt-rtx" else (),
        half=planned.half,
        cosine=_COSINE["half" if planned.half else component.precision],
        profile=planned.ranges,
        checks=checks(planned.ranges),
        states=[astuple(state_port(s)) for s in bundle.manifest.states_of(component.name)],
        fixed=planned.fixed,
    )
    built = _in_child(job, scratch / "job.json", tell)
    engine = Engine(
        component=component.name,
        target=planned.target,
        gpu=planned.gpus,
        builder=f"{planned.target} {built['version']}",
        driver=_driver(),
        sha256=sha256_of(output),
        options_sha256=planned.digest,
        seconds=round(built["seconds"], 3),
        bytes=output.stat().st_size,
    )
    return output, Note(
        engine=engine,
        graph_sha256=planned.graph,
        profile=built["profile"],
        cosine=built["cosine"],
        peak_rss_mb=built["peak_rss_mb"],
        warnings=tuple(built["warnings"]),
    )


def _driver() -> str:
    """The CUDA version that the driver here serves; empty where there is no GPU."""
    return next((f"CUDA {d.driver // 1000}.{d.driver % 1000 // 10}" for d in cuda.gpus()), "")


def _check_memory(bundle: Bundle, planned: Plan) -> None:
    import psutil

    component = planned.component
    weights = sum(bundle.manifest.files[file].bytes for file in (component.file, *component.weights))
    needed, free = _BASE_BYTES + _PER_WEIGHT_BYTE * weights, psutil.virtual_memory().available
    if needed > free:
        raise BundleError(
            f"building {component.name} for {planned.target} takes up to {needed / 1e9:.1f} GB of memory; "
            f"{free / 1e9:.1f} GB are free",
            hint="close other programs, or build on another machine: the engine is a file of the bundle",
        )


def _in_child(job: Job, path: Path, tell: Tell) -> dict[str, Any]:
    path.write_text(job_text(job))
    command = [sys.executable, "-m", "edgemm.runtimes.tensorrt_worker", str(path)]
    result: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said = json.loads(line)
                if "share" in said:
                    tell(said["at"], said["share"])
                else:
                    result = said
            code = child.wait()
        except BaseException:
            child.kill()
            raise
    if "error" in result:
        raise _raised(result["error"])
    if "built" not in result:
        raise BundleError(
            f"the process that built {Path(job.graph).name} for {job.target} ended with code {code}",
            hint="free some memory and run it again",
        )
    built: dict[str, Any] = result["built"]
    return built


def _raised(error: dict[str, str]) -> EdgemmError:
    kind = getattr(errors, error["type"], BundleError)
    made: EdgemmError = kind(error["message"], hint=error["hint"])
    return made


def keep(bundle: Bundle, built: Sequence[tuple[Path, Note]], elsewhere: Path | None = None) -> Path:
    """Put engines where later sessions find them; return the folder.

    That is the bundle, whose manifest then lists them; or the cache (or `elsewhere`), for an archive, the embedded
    bundle and a place that cannot be written.
    """
    owned = (cache_dir(), Path(errors.__file__).resolve().parent)
    if not any(bundle.path.resolve().is_relative_to(place) for place in owned):
        try:
            return _keep_inside(bundle, built)
        except StorageError:
            pass
    folder = elsewhere or cache_dir(FOLDER, bundle_key(bundle))
    put_engines(folder, built)
    return folder


def _keep_inside(bundle: Bundle, built: Sequence[tuple[Path, Note]]) -> Path:
    place = bundle.path.resolve()
    with adding(place) as twin:
        put_engines(twin / FOLDER, built)
        kept = tuple(note.engine for _, note in built)
        names = {(e.component, e.target, e.options_sha256) for e in kept}
        older = [e for e in bundle.manifest.engines if (e.component, e.target, e.options_sha256) not in names]
        write_manifest(twin, bundle.manifest.model_copy(update={"engines": (*older, *kept)}))
    return place / FOLDER


def put_engines(folder: Path, built: Sequence[tuple[Path, Note]]) -> None:
    """Engines and their notes, in a folder that lists no others of these names."""
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for path, note in built:
            target = folder / f"{note.stem}{_SUFFIX}"
            partial = target.with_suffix(".partial")
            shutil.copyfile(path, partial)
            os.replace(partial, target)
            # Last, and of no use if it is torn: an engine without its note is none. A note that the bundle shares with
            # its twin is replaced, not written to.
            record = target.with_suffix(".json")
            record.unlink(missing_ok=True)
            record.write_text(note.model_dump_json(indent=1) + "\n")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what building needs, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgemm-build-") as name:
        yield Path(name)
