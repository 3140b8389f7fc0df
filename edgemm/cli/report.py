"""`edgemm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb

EXAMPLES = 12


def report(
    io: Io,
    bundle: args.BundleArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; other sections stay.")] = Path(
        "report.html"
    ),
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Pictures, sounds, videos as examples, or folders of them (12 at most)."),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", help="What the examples are asked, too.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Calls of each component; 0: nothing is timed.")] = 20,
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
) -> None:
    """One self-contained page: sizes, parity, accuracy, speed on this machine, and examples."""
    from edgemm.measure.bench import bench
    from edgemm.measure.predict import predict
    from edgemm.measure.report_page import add, sections_at, speed
    from edgemm.measure.report_page import examples as shown
    from edgemm.model import Model
    from edgemm.runtimes.base import SessionOptions

    own = args.open_or_default(io, bundle)
    sections_at(output, own)
    options = SessionOptions(device=device, threads=threads, exact=exact)
    files = [file for path in data or () for file in (sorted(path.iterdir()) if path.is_dir() else [path])][:EXAMPLES]
    sections = {}
    with io.progress() as tell:
        if rounds:
            sections["speed"] = speed(bench(own, rounds=rounds, runtime=runtime, options=options, progress=tell))
        with Model(own, runtime=runtime, options=options, remark=io.note) as model:
            examples = []
            for number, file in enumerate(files):
                tell(file.name, number / len(files))
                examples.append(predict(model, file, question=question))
    if examples:
        sections["examples"] = shown(examples)
    add(output, own, sections)
    io.document({"bundle": str(own.path), "page": str(output), "bytes": output.stat().st_size})
    io.show(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


verb = as_verb(report)
