"""Smaller copies of a model: fewer of its layers, the teacher's weights in those that stay."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from edgemm.errors import UsageError

SHAPES = {"same": 1, "half-depth": 2, "quarter-depth": 4, "tiny": 1000}
"""Name → one of how many layers stays; at least one does."""

_DEPTH = re.compile(r"(^|_)(n_layers?|num_layers|num_hidden_layers|layers|depth)$")


def student_of(teacher: Any, shape: str) -> Any:
    """A model of the teacher's class by the name of a shape, or by a JSON file with values of its configuration.

    Weights that fit are the teacher's, of layers those evenly spread from the first to the last; others are drawn.
    Raises UsageError for a shape that is not known, or that leaves nothing to be distilled.
    """
    config = copy.deepcopy(teacher.config)
    if shape in SHAPES:
        changed = _shallower(config, SHAPES[shape])
    elif Path(shape).is_file():
        changed = _updated(config, json.loads(Path(shape).read_text()))
    else:
        raise UsageError(f"no student is called {shape!r}", hint=f"one of {', '.join(SHAPES)}, or a JSON file")
    if shape != "same" and not changed:
        raise UsageError(f"a {teacher.config.model_type} has no layers to leave out", hint="give a JSON file")
    student = type(teacher)(config)
    student.generation_config = copy.deepcopy(getattr(teacher, "generation_config", None))
    _take_weights(student, teacher)
    return student


def _shallower(config: Any, divisor: int) -> list[str]:
    changed = []
    for name, value in list(vars(config).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and _DEPTH.search(name):
            setattr(config, name, max(1, value // divisor))
            changed.append(name)
        elif isinstance(value, list) and name == "layer_types":
            config.layer_types = value[: max(1, len(value) // divisor)]
        elif hasattr(value, "to_dict"):
            changed += [f"{name}.{inner}" for inner in _shallower(value, divisor)]
    return changed


def _updated(config: Any, values: dict[str, Any]) -> list[str]:
    for name, value in values.items():
        if not hasattr(config, name):
            raise UsageError(f"the configuration has no {name!r}", hint="give names of the teacher's config.json")
        if isinstance(value, dict):
            _updated(getattr(config, name), value)
        else:
            setattr(config, name, value)
    return list(values)


def _take_weights(student: nn.Module, teacher: nn.Module) -> None:
    sizes = {n: len(m) for n, m in teacher.named_modules() if isinstance(m, nn.ModuleList)}
    fewer = {n: len(m) for n, m in student.named_modules() if isinstance(m, nn.ModuleList) and len(m) < sizes.get(n, 0)}
    theirs, own = teacher.state_dict(), student.state_dict()
    for name in own:
        source = theirs.get(_original(name, fewer, sizes))
        if source is not None and source.shape == own[name].shape:
            own[name] = source.clone()
    student.load_state_dict(own)


def _original(name: str, fewer: dict[str, int], sizes: dict[str, int]) -> str:
    """The teacher's name of a student's weight: layer i of n is that at the same place among the teacher's."""
    for place, count in fewer.items():
        if name.startswith(f"{place}."):
            index, _, rest = name.removeprefix(f"{place}.").partition(".")
            return f"{place}.{taken_from(int(index), count, sizes[place])}.{rest}"
    return name


def taken_from(index: int, count: int, of: int) -> int:
    """Which of a teacher's `of` layers stands for one of the student's `count`: the first, the last, those between."""
    return round(index * (of - 1) / (count - 1)) if count > 1 else of - 1
