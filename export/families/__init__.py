"""One file a family. The file's name is the `model_type`, with `_` for `-`.

A family module has `MODEL_TYPE`, `TASKS` and `NEEDS` (prefixes of weights that must be in the checkpoint, per
modality; `|` between those that versions of transformers write), all three literals, and
`plan(checkpoint) -> ModelPlan`. The literals are read without importing the module, so that a machine without torch
can say what a checkpoint is.

A family outside this package registers its module under the entry point group `edgemm.families`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgemm.errors import CheckpointError
from edgemm.export import heads

if TYPE_CHECKING:
    from edgemm.export.checkpoint import Checkpoint
    from edgemm.export.model_plan import ModelPlan


ENTRY_POINTS = "edgemm.families"


class Family(Protocol):
    """What a family's module provides."""

    MODEL_TYPE: str
    TASKS: tuple[str, ...]
    NEEDS: Mapping[str, tuple[str, ...]]

    def plan(self, checkpoint: Checkpoint) -> ModelPlan:
        """Load the checkpoint and describe its components."""
        ...


@dataclass(frozen=True)
class FamilyFacts:
    """A family's literals, the module that they stand in, and the model classes that it takes from transformers."""

    model_type: str
    tasks: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]
    module: str
    classes: tuple[str, ...] = ()


@cache
def known() -> Mapping[str, FamilyFacts]:
    """Every family by its `model_type`; edgemm's own win over registered ones of the same name."""
    own = {f"{__name__}.{path.stem}": path for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    found = [_read(path.read_text(), module) for module, path in (_registered() | own).items()]
    by_type = {facts.model_type: facts for facts in found}
    return {name: by_type[name] for name in sorted(by_type)}


def _registered() -> dict[str, Path]:
    """Module → file of the families that installed packages register."""
    modules = [point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]
    specs = {module: importlib.util.find_spec(module) for module in modules}
    return {module: Path(spec.origin) for module, spec in specs.items() if spec is not None and spec.origin}


def _read(source: str, module: str) -> FamilyFacts:
    values = {}
    classes: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module == "transformers":
            classes += [alias.name for alias in node.names if heads.head_of(alias.name)]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id in ("MODEL_TYPE", "TASKS", "NEEDS"):
                values[target.id] = ast.literal_eval(node.value)
    absent = sorted({"MODEL_TYPE", "TASKS", "NEEDS"} - values.keys())
    if absent:
        raise CheckpointError(f"the family {module} has no literal {', '.join(absent)}")
    return FamilyFacts(values["MODEL_TYPE"], values["TASKS"], values["NEEDS"], module, tuple(classes))


def names() -> tuple[str, ...]:
    """Every `model_type` that edgemm exports."""
    return tuple(known())


def facts(model_type: str, config: Mapping[str, Any] | None = None) -> FamilyFacts:
    """The literals of a family; CheckpointError with the nearest names for an unknown `model_type`.

    The error also says what a checkpoint with this `config` is for.
    """
    if model_type not in known():
        near = difflib.get_close_matches(model_type, names(), n=3, cutoff=0.5)
        purpose = heads.purpose(config or {})
        raise CheckpointError(
            f"no family exports model_type {model_type!r}"
            + (f" ({purpose})" if purpose else "")
            + (f"; the nearest are {', '.join(near)}" if near else ""),
            hint="run: edgemm export --list-families; a family of your own registers by the entry point "
            f"group {ENTRY_POINTS} (CONTRIBUTING.md)",
        )
    return known()[model_type]


def find(model_type: str) -> Family:
    """The module of a `model_type`, torch and all; CheckpointError for an unknown one."""
    return cast(Family, importlib.import_module(facts(model_type).module))


def check_head(checkpoint: Checkpoint, family: FamilyFacts) -> None:
    """Raise CheckpointError where the checkpoint's architecture has another head than the family exports."""
    strange = heads.strange_head(checkpoint.config, family.classes)
    if strange:
        raise CheckpointError(
            f"{checkpoint.path} is a {heads.purpose(checkpoint.config)}; the family {family.model_type} exports "
            f"{' and '.join(family.classes)}, for {', '.join(family.tasks)}",
            hint=f"fine-tune a {family.classes[0]}, or add a family of your own by the entry point "
            f"group {ENTRY_POINTS} (CONTRIBUTING.md)",
        )


def check_modalities(checkpoint: Checkpoint, family: FamilyFacts) -> None:
    """Raise CheckpointError where a modality of the family has no weights in the checkpoint."""
    for modality, prefix in weightless(family, checkpoint.shapes):
        raise CheckpointError(
            f"{checkpoint.path} is a {family.model_type} without its {modality}: no weight begins with {prefix!r}",
            hint="export the whole checkpoint, not one half of it",
        )


def weightless(family: FamilyFacts, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(modality, prefix) of what the family needs and none of the weights' `names` begins with."""
    names = tuple(names)
    for modality, prefixes in family.needs.items():
        for prefix in prefixes:
            # Layouts differ between versions of transformers: `|` separates what each may begin with.
            if not any(name.startswith(tuple(prefix.split("|"))) for name in names):
                yield modality, prefix
