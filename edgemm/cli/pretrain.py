"""`edgemm pretrain`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgemm.cli.finetune import finetune
from edgemm.cli.shared import Io, library
from edgemm.cli.shared import verb as as_verb
from edgemm.cli.training import extended, options_of, pair, train

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
    module: Any = library("train.pretrain", extra="train")
    asked = [text if "=" in text else f"{text}=1.0" for text in given["objective"] or ()]
    weights = {"weights": {name.replace("-", "_"): float(value) for name, value in map(pair, asked)}} if asked else {}
    lessons, options = module.Lessons(hidden=given["hidden"], **weights), options_of(given)
    places = {name: given[name] for name in ("validation", "test", "overwrite")}
    what = (given["checkpoint"], given["data"], given["output"])
    train(io, lambda tell: module.pretrain(*what, lessons=lessons, options=options, progress=tell, **places))


pretrain.__signature__ = extended(finetune, _OWN, output="pretrained", without=("task",))  # type: ignore[attr-defined]
verb = as_verb(pretrain)
