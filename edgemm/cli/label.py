"""`edgemm label`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemm.cli.shared import Io, library
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import UsageError


def label(
    io: Io,
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="A checkpoint's directory, a hub id (owner/name), or an adapter.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="The rows: a directory with metadata.jsonl, or a saved data set.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the labelled data set goes.")] = Path(
        "labelled"
    ),
    task: Annotated[str | None, typer.Option("--task", help="transcribe, answer, caption, classify, detect.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows that are asked and kept together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    ray: Annotated[
        bool, typer.Option("--ray", help="On the Ray cluster of RAY_ADDRESS, or on one of this machine.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Teachers on Ray; 0: one a GPU, else one for two processors.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the data set that is there, or an unfinished run.")
    ] = False,
) -> None:
    """A teacher answers every row of a data set, which becomes one that a student learns from."""
    if workers and not ray:
        raise UsageError("--workers are Ray's", hint="add --ray")
    module: Any = library("train.label", extra="train")
    with io.progress() as tell:
        report = module.label(
            teacher,
            data,
            output,
            task=task,
            batch=batch,
            max_new_tokens=max_new_tokens,
            on_ray=ray,
            workers=workers,
            overwrite=overwrite,
            progress=tell,
        )
    found = asdict(report)
    figures = {"seconds": round(report.seconds, 1), "rows_per_s": round(report.rows_per_s, 2)}
    io.document({**found, "data": str(report.data), **figures})
    before = f", {report.resumed} of them before" if report.resumed else ""
    io.show(f"{report.data}: {report.rows} rows labelled{before}, {report.rows_per_s:.1f} a second")


verb = as_verb(label)
