"""One file a family. The file's name is the `model_type`, with `_` for `-`.

A family module has `MODEL_TYPE`, `TASKS`, `NEEDS` (prefixes of weights that must be in the checkpoint, per
modality) and `plan(checkpoint) -> ModelPlan`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol, cast

from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan


class Family(Protocol):
    """What a family's module provides."""

    MODEL_TYPE: str
    TASKS: tuple[str, ...]
    NEEDS: Mapping[str, tuple[str, ...]]

    def plan(self, checkpoint: Checkpoint) -> ModelPlan:
        """Load the checkpoint and describe its components."""
        ...


def names() -> tuple[str, ...]:
    """Every `model_type` that edgemm exports."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(n.replace("_", "-") if n in _DASHED else n for n in modules))


_DASHED = ("efficientnet_lite0", "silero_vad")


def find(model_type: str) -> Family:
    """The family of a `model_type`; CheckpointError with the nearest names for an unknown one."""
    if model_type not in names():
        near = difflib.get_close_matches(model_type, names(), n=3, cutoff=0.5)
        raise CheckpointError(
            f"no family exports model_type {model_type!r}" + (f"; the nearest are {', '.join(near)}" if near else ""),
            hint="run: edgemm export --list-families",
        )
    return cast(Family, importlib.import_module(f"{__name__}.{model_type.replace('-', '_')}"))


def check_modalities(checkpoint: Checkpoint, family: Family) -> None:
    """Raise CheckpointError where a modality of the family has no weights in the checkpoint."""
    for modality, prefixes in family.NEEDS.items():
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in checkpoint.shapes):
                raise CheckpointError(
                    f"{checkpoint.path} is a {family.MODEL_TYPE} without its {modality}: "
                    f"no weight begins with {prefix!r}",
                    hint="export the whole checkpoint, not one half of it",
                )
