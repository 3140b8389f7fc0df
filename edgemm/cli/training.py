"""What the training verbs share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import fields
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
    values["optimizer_options"] = dict(_pair(text) for text in given.get("optimizer_options") or ())
    options: TrainOptions = made(**values)
    return options


def is_first_process() -> bool:
    """Whether this is the one that speaks, where `accelerate launch` started several."""
    return os.environ.get("RANK", "0") == "0"


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no option of an optimizer", hint="such as momentum=0.9")
    return name.strip(), _value(value.strip())


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        return text
