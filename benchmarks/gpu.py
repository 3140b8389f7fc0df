"""Engines of bundles on the NVIDIA GPU of this machine: are their numbers right, and how fast are they?

    pip install "edgemm[tensorrt-rtx]"          # or [tensorrt]
    python benchmarks/gpu.py bundle-fp16 bundle-int8 --target tensorrt-rtx --json gpu.json

For every component of every bundle the engine is built where there is no fresh one (it then stands in the bundle, as
`edgemm build` leaves it), loaded, compared with ONNX Runtime on the processor at the least and the usual shapes of the
manifest, and timed at the usual ones with CUDA graphs and without; a decoder also by the token, at half of its context
or 512 positions. int8 bundles run with int8 weights and fp16 activations; `--w8a8` builds engines with int8 activations
too and times them beside. With `--checkpoint DIR` and a torch that has CUDA, the checkpoint's own modules are timed in
fp16. `--component vision_encoder,decoder` restricts all of it; `--no-build` takes only engines that are there.

One table and, with `--json FILE`, all figures. Without a GPU or the library it says so and ends with 1, and so it does
where no engine ran. Times are medians and 99th percentiles in ms, copies to and from the processor included; torch's
are without copies, which favours torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.bundle.manifest import Component, Engine
from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.errors import EdgemmError
from edgemm.measure.building import build
from edgemm.measure.timing import Times, interleaved
from edgemm.runtimes import cuda, engines, onnxruntime, registry, tensorrt
from edgemm.runtimes.base import Array, Decoder, Session, SessionOptions, as_numpy, state_port
from edgemm.runtimes.lowering.tensorrt import halved, lower, read, save
from edgemm.runtimes.tensorrt_api import Api
from edgemm.runtimes.tensorrt_engine import find_engine
from edgemm.runtimes.tensorrt_worker import _cosine, _input

PAST = 512
EXACT = SessionOptions(exact=True)
Row = dict[str, Any]


def why_not(target: str) -> str:
    """Why nothing can be measured here; empty where it can."""
    runtime = registry.RUNTIMES[target]
    if not runtime.installed:
        return f'{target} is not installed: pip install "edgemm[{runtime.extra}]"'
    return runtime.missing


def feeds_at(component: Component, k: int) -> dict[str, Array]:
    """Inputs at the least (0) or the usual (1) shapes of the manifest."""
    shapes = engines.profile(component)
    return {i.name: _input(i.name, shapes[i.name][k], np.dtype(i.dtype)) for i in component.inputs}


def compared(engine: Session, reference: Session, component: Component) -> dict[str, float]:
    """The least cosine and the greatest difference of any output at the manifest's shapes."""
    cosines, differences = [1.0], [0.0]
    for k in (0, 1):
        feeds = feeds_at(component, k)
        found, wanted = engine.run(feeds), reference.run(feeds)
        for name in wanted:
            a, b = (as_numpy(side[name]).astype(np.float32) for side in (found, wanted))
            if a.size:
                cosines.append(_cosine(a, b))
                differences.append(float(np.abs(a - b).max()))
    return {"cosine": min(cosines), "max_difference": max(differences)}


def measured(path: Path, bundle: Bundle, component: Component, rounds: int) -> Row:
    """An engine's figures."""
    start = time.perf_counter()
    loaded = {on: tensorrt.load_session(path, replace(EXACT, cuda_graphs=on)) for on in (True, False)}
    load_s = (time.perf_counter() - start) / 2
    with closing(loaded[True]), closing(loaded[False]):
        feeds = feeds_at(component, 1)
        start = time.perf_counter()
        loaded[False].run(feeds)
        first_ms = (time.perf_counter() - start) * 1e3
        with closing(onnxruntime.load_session(bundle.file(component.file), EXACT)) as reference:
            likeness = compared(loaded[False], reference, component)
        calls: dict[str, Callable[[], object]] = {
            "graphs": lambda: loaded[True].run(feeds),
            "plain": lambda: loaded[False].run(feeds),
        }
        for call in calls.values():
            call()  # a CUDA graph is captured in the second call
        times = interleaved(calls, rounds)
    row: Row = {"load_s": round(load_s, 3), "first_ms": round(first_ms, 2), **likeness}
    row |= {name: asdict(t) for name, t in times.items()}
    if bundle.manifest.states_of(component.name):
        row["token"] = asdict(by_token(path, bundle, component, rounds))
    return row


def by_token(path: Path, bundle: Bundle, component: Component, rounds: int) -> Times:
    """One token of a decoder whose state stays on the GPU."""
    states = tuple(map(state_port, bundle.manifest.states_of(component.name)))
    context = next(m.context for m in bundle.manifest.models if m.name == component.model)
    decoder: Decoder = tensorrt.load_decoder(path, states, context, EXACT)
    past = max(1, min(PAST, context // 2))
    usual = feeds_at(component, 1)
    embeds = np.repeat(usual["inputs_embeds"][:, :1], past, axis=1)
    cross = {name: value for name, value in usual.items() if name.startswith("cross")}
    with closing(decoder):
        decoder.prefill(embeds, cross=cross or None)

        def step() -> None:
            if decoder.length >= context - 1:
                decoder.truncate(past)
            decoder.step(embeds[:, :1])

        return interleaved({"token": step}, rounds)["token"]


def w8a8_engine(bundle: Bundle, component: Component, target: str, folder: Path) -> Path:
    """An engine of an int8 graph whose activations stay int8. It is built here, beside nothing else."""
    device = cuda.gpus()[0]
    api, start = Api(target), time.perf_counter()
    model = halved(lower(read(bundle.file(component.file)), activations=True))
    ranges = engines.profile(component)
    gpus = (device.sm,) if target == "tensorrt-rtx" else ()
    data, said = api.build(save(model, folder, component.name), ranges, gpus, lambda _what, _share: None)
    path = folder / f"{component.name}.w8a8.engine"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    engine = Engine(
        component=component.name, target=target, gpu=(device.sm,), builder=f"{target} {api.version}", sha256=digest,
        options_sha256=digest, seconds=time.perf_counter() - start, bytes=len(data),
    )  # fmt: skip
    note = engines.Note(
        engine=engine, graph_sha256=engines.graph_hash(bundle, component), profile=ranges, cosine=1.0, peak_rss_mb=0.0,
        warnings=said[:20],
    )  # fmt: skip
    path.with_suffix(".json").write_text(note.model_dump_json())
    return path


def torch_rows(checkpoint: Path, bundle: Bundle, only: tuple[str, ...], rounds: int) -> Iterator[Row]:
    """The checkpoint's own modules on the GPU in fp16."""
    import torch

    from edgemm.export import families
    from edgemm.export.checkpoint import find_checkpoint

    if not torch.cuda.is_available():
        raise EdgemmError("this torch has no CUDA")
    found = find_checkpoint(checkpoint)
    graphs = {g.role: g for g in families.find(found.model_type).plan(found).graphs}
    for component in bundle.manifest.components:
        if component.role not in graphs or (only and component.name not in only):
            continue
        module = graphs[component.role].module.half().cuda().eval()
        feeds = {n: torch.from_numpy(v).cuda() for n, v in feeds_at(component, 1).items()}
        feeds = {n: v.half() if v.is_floating_point() else v for n, v in feeds.items()}

        def call(module: Any = module, feeds: Any = feeds) -> None:
            with torch.no_grad():
                module(feeds)
            torch.cuda.synchronize()

        row: Row = {"component": component.name, "precision": "fp16", "engine": "torch"}
        yield row | tried(lambda call=call: {"plain": asdict(interleaved({"": call}, rounds)[""])})  # type: ignore[misc]


def tried(measure: Callable[[], Row]) -> Row:
    """What is measured, or the error that came instead."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}


def rows_of(bundle: Bundle, arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """Every engine of one bundle."""
    only, target = tuple(arguments.component), arguments.target
    refused: dict[str, str] = {}
    if not arguments.no_build:
        try:
            refused = build(bundle, target, (), only, lambda what, share: tell(f"{share:4.0%} {what}")).refused
        except EdgemmError as error:
            tell(str(error))
        bundle = open_bundle(bundle.path)
    for component in bundle.manifest.components:
        if only and component.name not in only:
            continue
        about: Row = {"bundle": bundle.name, "component": component.name, "precision": component.precision}
        tell(f"{bundle.name}: {component.name}")
        if component.name in refused:
            yield about | {"engine": target, "error": refused[component.name]}
            continue
        yield about | {"engine": target} | tried(lambda c=component: _found(bundle, c, target, arguments.rounds))  # type: ignore[misc]
        if arguments.w8a8 and component.int8_operators:
            yield (
                about
                | {"engine": f"{target} w8a8"}
                | tried(
                    lambda c=component: measured(w8a8_engine(bundle, c, target, scratch), bundle, c, arguments.rounds)  # type: ignore[misc]
                )
            )


def _found(bundle: Bundle, component: Component, target: str, rounds: int) -> Row:
    return measured(find_engine(bundle, component, target, EXACT), bundle, component, rounds)


def table(rows: list[Row]) -> str:
    """The rows for a person."""
    lines = [
        f"{'bundle':20} {'component':18} {'precision':9} {'runs on':18} "
        f"{'cosine':>8} {'graphs':>9} {'plain':>9} {'token':>9}"
    ]
    for row in rows:
        ms = [f"{row[k]['median_ms']:9.3f}" if k in row else f"{'':9}" for k in ("graphs", "plain", "token")]
        cosine = f"{row['cosine']:8.5f}" if "cosine" in row else f"{'':8}"
        head = f"{row.get('bundle', ''):20} {row['component']:18} {row['precision']:9} {row['engine']:18}"
        lines.append(f"{head} {row['error']}" if "error" in row else f"{head} {cosine} {' '.join(ms)}")
    return "\n".join(lines)


def tell(what: str) -> None:
    """For the person who waits."""
    print(what, file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    targets = [name for name, it in registry.RUNTIMES.items() if it.runs_engines]
    parser.add_argument("--target", choices=targets, default="tensorrt-rtx")
    parser.add_argument("--component", type=lambda text: text.split(","), default=[])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--w8a8", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    reason = why_not(arguments.target)
    if reason:
        tell(f"nothing was measured: {reason}")
        return 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgemm-gpu-") as scratch:
        for path in arguments.bundles:
            rows += rows_of(open_bundle(path), arguments, Path(scratch))
    if arguments.checkpoint:
        bundle, only = open_bundle(arguments.bundles[0]), tuple(arguments.component)
        try:
            rows += torch_rows(arguments.checkpoint, bundle, only, arguments.rounds)
        except Exception as error:
            tell(f"torch was not measured: {error}")
    gpu = next(iter(cuda.gpus()), None)
    machine = {"gpu": gpu.name, "sm": gpu.sm, "driver": gpu.driver} if gpu else {}
    library = f"{arguments.target} {registry.RUNTIMES[arguments.target].version}"
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "library": library, "rows": rows}, indent=1) + "\n")
    print(f"{machine.get('gpu', '')}, {library}\n{table(rows)}")
    return 0 if any("cosine" in row for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
