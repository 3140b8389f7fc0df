"""`edgemm distill`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgemm.cli.finetune import finetune
from edgemm.cli.shared import Io, library
from edgemm.cli.shared import verb as as_verb
from edgemm.cli.training import extended, options_of, train


def distill(io: Io, **given: Any) -> None:
    """A checkpoint teaches a smaller copy of itself: by the labels, and by everything that it would have said."""
    module: Any = library("train.distill", extra="train")
    teaching = module.Teaching(
        given["student"],
        given["temperature"],
        given["hard"],
        given["sequence"],
        features=given["features"],
        feature_loss=given["feature_loss"],
        feature_layers=tuple(given["feature_layer"] or ()),
        qat=given["qat"],
    )
    options = options_of(given)
    places = {name: given[name] for name in ("task", "validation", "test", "overwrite")}
    asked = (given["checkpoint"], given["data"], given["output"])
    train(io, lambda tell: module.distill(*asked, teaching=teaching, options=options, progress=tell, **places))


_TEACHING = {
    "student": (
        "",
        Annotated[
            str,
            typer.Option(
                "--student",
                help="half-depth (the default), quarter-depth, tiny, same (with --qat), a JSON file, or a checkpoint.",
            ),
        ],
    ),
    "temperature": (2.0, Annotated[float, typer.Option("--temperature", help="Of what the teacher says.")]),
    "hard": (0.5, Annotated[float, typer.Option("--hard", help="Share of the labels' own loss.")]),
    "sequence": (
        False,
        Annotated[bool, typer.Option("--sequence", help="Learn the teacher's own words, whatever the rows say.")],
    ),
    "qat": (
        None,
        Annotated[str | None, typer.Option("--qat", help="Train for weights in int8 or int4, as export rounds them.")],
    ),
    "features": (
        0.0,
        Annotated[float, typer.Option("--features", min=0.0, help="Weight of the hidden states' distance; 0: none.")],
    ),
    "feature_loss": ("mse", Annotated[str, typer.Option("--feature-loss", help="mse or cosine.")]),
    "feature_layer": (
        None,
        Annotated[
            list[str] | None,
            typer.Option(
                "--feature-layer",
                help="A layer of the student, such as decoder.layers.1, or STUDENT=TEACHER. Repeatable; else all.",
            ),
        ],
    ),
}


distill.__signature__ = extended(finetune, _TEACHING, output="student")  # type: ignore[attr-defined]
verb = as_verb(distill)
