"""What a checkpoint is for: by its architecture's name, and where that needs a judge, by optimum's TasksManager.

Nothing here goes to the network: classes are looked up, repositories are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = re.compile(r"For([A-Z]\w*)$|(Model|Backbone)$")
_MOST = 6


def head_of(architecture: str) -> str:
    """The head that a class of transformers is named after; empty where the name does not say.

    "ViTForImageClassification" → "ImageClassification", "ViTModel" → "Model".
    """
    found = _HEAD.search(architecture)
    return (found[1] or found[2]) if found else ""


def strange_head(config: Mapping[str, Any], classes: Sequence[str]) -> str:
    """The architecture of `config` whose head is none of those of `classes`; empty where there is none to object to.

    A class of one's own is judged by its head alone, and not at all if its name does not say.
    """
    heads = {head_of(name) for name in classes}
    named = [str(name) for name in config.get("architectures") or ()]
    if not heads or set(named) & set(classes) or any(head_of(name) in heads for name in named):
        return ""
    return next((name for name in named if head_of(name)), "")


def tasks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that a `config.json` is for, as optimum names them.

    Those of its architectures; where it names none, every one that transformers has a class of its `model_type` for.

    Empty where that is not known, and on machines without optimum.
    """
    try:
        import transformers
        from optimum.exporters.tasks import TasksManager
    except ImportError:
        return ()
    names = config.get("architectures") or ()
    if not names:
        return _possible_tasks(TasksManager, str(config.get("model_type", "")))
    found = []
    for name in names:
        try:
            found.append(str(TasksManager.infer_task_from_model(getattr(transformers, str(name)))))
        except (AttributeError, ImportError, ValueError):
            continue
    return tuple(dict.fromkeys(found))


def _possible_tasks(manager: Any, model_type: str) -> tuple[str, ...]:
    """Every task that transformers has a class of `model_type` for."""
    found = []
    for task in sorted(manager.get_all_tasks()):
        try:
            auto = manager.get_model_class_for_task(task, model_type=model_type)
            known = model_type in auto._model_mapping._model_mapping
        except (AttributeError, ImportError, KeyError, ValueError):
            continue
        if known:
            found.append(task)
    return tuple(found)


def purpose(config: Mapping[str, Any]) -> str:
    """A clause on what `config` is for, such as "ViTModel, for feature-extraction"; empty where nothing is known."""
    named = ", ".join(str(name) for name in config.get("architectures") or ())
    tasks = tasks_of(config)
    listed = ", ".join(tasks[:_MOST]) + (" …" if len(tasks) > _MOST else "")
    if not named:
        return f"no architecture named; it may be for {listed}" if tasks else ""
    return f"{named}, for {listed}" if tasks else named
