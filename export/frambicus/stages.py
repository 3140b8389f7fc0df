"""Which weights a stage of training moves: patterns over the names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from edgemm.errors import UsageError

STAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "towers": ("vision.*", "speech.*"),
        "vision": ("vision.*",),
        "speech": ("speech.*",),
        "connector": ("connector.*", "concepts.*", "finds.*", "reconstructor.*"),
        "memory": ("connector.*", "concepts.*", "finds.*", "audio.*", "nulls"),
        "text": ("text.*",),
        "cross": ("text.layers.*.cross.*", "text.layers.*.cross_norm.*"),
        "detector": ("detector.*",),
        "embedder": ("embedder.*",),
    }
)


def stage_patterns(stage: str) -> tuple[str, ...]:
    """The patterns of a stage, or `stage` itself if it is a pattern. Raises UsageError for a word that is neither."""
    if stage in STAGES:
        return STAGES[stage]
    if not any(mark in stage for mark in "*?[."):
        raise UsageError(f"there is no stage {stage}", hint=f"one of {', '.join(STAGES)}, or a pattern such as text.*")
    return (stage,)


def freeze(model: Any, *stages: str, frozen: bool = True) -> list[str]:
    """Stop (or with `frozen=False` start) training the parameters of `stages`; returns their names.

    Raises UsageError for a stage that there is not, or one that no parameter matches.
    """
    patterns = {pattern: stage for stage in stages for pattern in stage_patterns(stage)}
    named = [(name, p) for name, p in model.named_parameters() if any(fnmatchcase(name, x) for x in patterns)]
    if not named:
        raise UsageError(f"no parameter is part of {', '.join(stages)}")
    for _, parameter in named:
        parameter.requires_grad_(not frozen)
    return [name for name, _ in named]


def own_parameters(model: Any) -> int:
    """The number of parameters that are not the towers'."""
    towers = STAGES["towers"]
    return sum(p.numel() for n, p in model.named_parameters() if not any(fnmatchcase(n, x) for x in towers))
