"""What the training verbs share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.cli.shared import Io, library
from edgemm.errors import UsageError

if TYPE_CHECKING:
    from edgemm.export.train.finetune import TrainReport
    from edgemm.export.train.options import TrainOptions


def options_of(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a run among what a verb was given; lists become tuples, what was not given stays as it is."""
    made: Any = library("train.options", extra="train").TrainOptions
    values = {f.name: given[f.name] for f in fields(made) if given.get(f.name) is not None}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    values["lora_targets"] = tuple(given.get("lora_target") or ())
    values["learning_rate"] = given["lr"]
    values["optimizer_options"] = dict(pair(text) for text in given.get("optimizer_option") or ())
    options: TrainOptions = made(**values)
    return options


def extended(
    function: Any, own: Mapping[str, tuple[Any, Any]], *, output: str, without: tuple[str, ...] = ()
) -> inspect.Signature:
    """The options of another verb, `output` being where it writes by itself, and `own` (name → default, annotation)."""
    usual = inspect.signature(function, eval_str=True).parameters.values()
    theirs = [p.replace(default=Path(output)) if p.name == "output" else p for p in usual]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    more = [inspect.Parameter(n, kind, default=default, annotation=what) for n, (default, what) in own.items()]
    return inspect.Signature([*(p for p in theirs if p.name not in without), *more])


def is_first_process() -> bool:
    """Whether this is the one that speaks, where `accelerate launch` started several."""
    return os.environ.get("RANK", "0") == "0"


def train(io: Io, run: Callable[[Callable[[str, float], None]], TrainReport]) -> None:
    """Do a run, which is given whom to tell how far it is, and tell its report; only the first process speaks."""
    first = is_first_process()
    with io.progress() if first else nullcontext(_silent) as tell:
        report = run(tell)
    if first:
        _tell(io, report)


def _silent(_what: str, _share: float) -> None:
    """Where another process of the run says how far it is."""


def _tell(io: Io, report: TrainReport) -> None:
    """The report of a run, as JSON or as a table."""
    io.document(
        {
            "checkpoint": str(report.checkpoint),
            "task": report.task,
            "metrics_before": dict(report.metrics_before),
            "metrics_after": dict(report.metrics_after),
            **({"metrics_teacher": dict(report.metrics_teacher)} if report.metrics_teacher else {}),
            "seconds": round(report.seconds, 1),
            "steps": report.steps,
            "examples_per_s": report.examples_per_s,
            "report": str(report.checkpoint / "report" / "index.html"),
        }
    )
    if io.json:
        return
    from edgemm.cli.tables import table

    teacher = report.metrics_teacher
    rows = table("", "metric", ">before", ">after", *([">teacher"] if teacher else []))
    for name, value in report.metrics_after.items():
        figures = (report.metrics_before.get(name, float("nan")), value, *([teacher[name]] if teacher else []))
        rows.add_row(name, *(f"{figure:.2f}" for figure in figures))
    io.show(
        rows,
        "",
        f"{report.checkpoint}: {report.steps} steps in {report.seconds:.0f} s; {report.trained:,} of "
        f"{report.parameters:,} weights trained; {report.checkpoint / 'report' / 'index.html'}",
    )


def pair(text: str) -> tuple[str, Any]:
    """`name=value`, the value as a number or a truth where it is one. Raises UsageError for anything else."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no name=value", hint="such as momentum=0.9")
    return name.strip(), _value(value.strip())


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        return text
