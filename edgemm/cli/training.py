"""What the training verbs share."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from edgemm.export.train.options import TrainOptions


def library(name: str) -> Any:
    """A module of `edgemm.export.train`. Raises RuntimeUnavailable where the extra is not installed."""
    try:
        return importlib.import_module(f"edgemm.export.train.{name}")
    except ImportError as error:
        package = (error.name or "torch").split(".")[0]
        raise missing_extra(package, "train", error) from error


def options_of(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a run among what a verb was given; lists become tuples, what was not given stays as it is."""
    made: Any = library("options").TrainOptions
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
