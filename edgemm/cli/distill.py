"""`edgemm distill`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from edgemm.cli.finetune import finetune, silent, tell_report
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.cli.training import extended, is_first_process, library, options_of


def distill(io: Io, **given: Any) -> None:
    """A checkpoint teaches a smaller copy of itself: by the labels, and by everything that it would have said."""
    module: Any = library("distill")
    teaching = module.Teaching(given["student"], given["temperature"], given["hard"])
    options = options_of(given)
    places = {name: given[name] for name in ("task", "validation", "test", "overwrite")}
    with io.progress() if is_first_process() else nullcontext(silent) as tell:
        report = module.distill(
            given["checkpoint"],
            given["data"],
            given["output"],
            teaching=teaching,
            options=options,
            progress=tell,
            **places,
        )
    if is_first_process():
        tell_report(io, report)


_TEACHING = {
    "student": (
        "half-depth",
        Annotated[str, typer.Option("--student", help="half-depth, quarter-depth, tiny, same, or a JSON file.")],
    ),
    "temperature": (2.0, Annotated[float, typer.Option("--temperature", help="Of what the teacher says.")]),
    "hard": (0.5, Annotated[float, typer.Option("--hard", help="Share of the labels' own loss.")]),
}


distill.__signature__ = extended(finetune, _TEACHING, output="student")  # type: ignore[attr-defined]
verb = as_verb(distill)
