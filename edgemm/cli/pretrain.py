"""`edgemm pretrain`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from edgemm.cli.finetune import finetune, silent, tell_report
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.cli.training import extended, is_first_process, library, options_of, pair

_OWN = {
    "objective": (
        None,
        Annotated[
            list[str] | None,
            typer.Option(
                "--objective",
                help="masked_grid, masked_language, contrastive, caption, with a weight such as caption=0.5. "
                "Repeatable; all if left out.",
            ),
        ],
    ),
    "hidden": (0.5, Annotated[float, typer.Option("--hidden", help="Share of a picture's cells that are masked.")]),
}


def pretrain(io: Io, **given: Any) -> None:
    """A Frambicus learns from pictures, clips and texts before it learns a task."""
    module: Any = library("pretrain")
    asked = [text if "=" in text else f"{text}=1.0" for text in given["objective"] or ()]
    weights = {"weights": {name.replace("-", "_"): float(value) for name, value in map(pair, asked)}} if asked else {}
    with io.progress() if is_first_process() else nullcontext(silent) as tell:
        report = module.pretrain(
            given["checkpoint"],
            given["data"],
            given["output"],
            lessons=module.Lessons(hidden=given["hidden"], **weights),
            options=options_of(given),
            progress=tell,
            **{name: given[name] for name in ("validation", "test", "overwrite")},
        )
    if is_first_process():
        tell_report(io, report)


pretrain.__signature__ = extended(finetune, _OWN, output="pretrained", without=("task",))  # type: ignore[attr-defined]
verb = as_verb(pretrain)
