"""`edgemm bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.measure.bench import Bench


def bench(
    io: Io,
    bundle: args.BundleArgument = None,
    against: Annotated[Path | None, typer.Option("--against", help="A bundle to time in the same rounds.")] = None,
    gate: Annotated[
        float | None,
        typer.Option("--gate", help="Exit with 3 unless every component is so many times faster than --against."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Calls of each component.")] = 20,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A picture, sound or video for the tasks; else made-up ones."),
    ] = None,
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
    report: args.ReportOption = None,
) -> None:
    """Time per component on each runtime installed, and per task."""
    from edgemm.bundle.opening import open_bundle
    from edgemm.measure.bench import bench as measure
    from edgemm.measure.bench import check_gate
    from edgemm.measure.report_page import add, sections_at, speed
    from edgemm.runtimes.base import SessionOptions

    if gate is not None and against is None:
        raise UsageError("--gate needs a bundle to compare with", hint="add --against BUNDLE")
    own, other = args.open_or_default(io, bundle), open_bundle(against) if against else None
    if report is not None:
        sections_at(report, own)
    with io.progress() as tell:
        found = measure(
            own,
            against=other,
            rounds=rounds,
            data=data,
            runtime=runtime,
            options=SessionOptions(device=device, threads=threads, exact=exact),
            progress=tell,
        )
    if report is not None:
        add(report, own, {"speed": speed(found, other.name if other else "")})
    if not io.json:
        _show(io, found)
    if gate is not None:
        check_gate(found, gate)
    document = {k: v for k, v in asdict(found).items() if v is not None}
    io.document({"bundle": str(own.path)} | document)


def _show(io: Io, found: Bench) -> None:
    from edgemm.cli.tables import table

    columns = ("component", "runtime", "precision", ">median ms", ">p99 ms")
    parts = table("", *columns, *((">times faster",) if found.ratio is not None else ()))
    for name, runtimes in found.components.items():
        for runtime, t in runtimes.items():
            if "error" in t:
                parts.add_row(name, runtime, t["precision"], "cannot run")
                continue
            ratio = (found.ratio or {}).get(name, {}).get(runtime)
            cells = [name, runtime, t["precision"], f"{t['median_ms']:.2f}", f"{t['p99_ms']:.2f}"]
            compared = [f"{ratio:.2f}" if ratio else ""] if found.ratio is not None else []
            parts.add_row(*cells, *compared)
    io.show(parts, "")
    for task, figures in found.tasks.items():
        io.show(f"{task:<12} {', '.join(f'{_word(k)} {v:g}' for k, v in figures.items())}")
    io.show(f"peak memory {found.peak_rss_mb:.0f} MB; tasks on {found.input}")


def _word(figure: Any) -> str:
    return str(figure).replace("_", " ")


verb = as_verb(bench)
