"""`edgemm eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb


def evaluate(
    io: Io,
    data: Annotated[Path, typer.Option("--data", help="A directory with metadata.jsonl, or one folder a class.")],
    bundle: args.BundleArgument = None,
    against: Annotated[Path | None, typer.Option("--against", help="A bundle to compare with.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    per_example: Annotated[Path, typer.Option("--per-example", help="Where the line for each example goes.")] = Path(
        "eval.jsonl"
    ),
    runtime: args.RuntimeOption = "auto",
    device: args.DeviceOption = "CPU",
    threads: args.ThreadsOption = 0,
    exact: args.ExactOption = None,
    report: args.ReportOption = None,
) -> None:
    """The tasks' metrics on a data set: of transcripts, captions, answers, labels, boxes and likings."""
    from contextlib import ExitStack
    from dataclasses import asdict

    from edgemm.measure.evaluate import evaluate as measure
    from edgemm.measure.evaluate import write_examples
    from edgemm.measure.report_page import accuracy, add, sections_at

    options: dict[str, Any] = {"runtime": runtime, "device": device, "threads": threads, "exact": exact}
    with ExitStack() as stack:
        model = stack.enter_context(args.load(io, bundle, **options))
        if report is not None:
            sections_at(report, model.bundle)
        other = against and stack.enter_context(args.load(io, against, **options))
        tell = stack.enter_context(io.progress())
        found = measure(model, data, other=other or None, limit=limit, progress=tell)
    write_examples(per_example, found)
    if report is not None:
        add(report, model.bundle, {f"accuracy-{data.name}": accuracy(found, data.name)})
    document: dict[str, Any] = {"metrics": found.metrics, "n": found.n}
    document["per_example"] = str(per_example)
    if found.drop is not None:
        document |= {"against": found.against, "drop": found.drop}
    if found.report is not None:
        document["report"] = asdict(found.report)
    io.document(document)
    for name, value in found.metrics.items():
        compared = ""
        if found.against is not None and found.drop is not None:
            compared = f" (other {found.against[name]:.2f} %, {found.drop[name]:+.2f} worse)"
        io.show(f"{name} {value:.2f} %{compared}")
    if found.report is not None:
        mean = found.report.macro
        io.show(f"precision {mean.precision:.2f} %, recall {mean.recall:.2f} %, F1 {mean.f1:.2f} %: means over labels")
    io.show(f"{found.n} examples, each in {per_example}")


verb = as_verb(evaluate)
