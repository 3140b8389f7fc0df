"""What a bundle or a checkpoint is, without loading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.manifest import MANIFEST_NAME, Component, Engine, Manifest, TaskCheck
from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError, EdgemmError, missing_extra

if TYPE_CHECKING:
    from edgemm.export.checkpoint import Checkpoint

# Bytes per parameter: int8 has one scale (2 bytes at most) for 32 weights.
_BYTES_PER = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0 + 2 / 32}


@dataclass(frozen=True)
class ComponentInfo:
    """A graph of a bundle, or a model of a checkpoint. `parity_*` are None without a comparison."""

    name: str
    model: str
    role: str
    model_type: str
    precision: str
    parameters: int
    bytes: int
    opset: int | None = None
    parity_max_abs: float | None = None
    parity_cosine: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found at `path`. `problems` are what stands in the way of its use.

    `bytes_per_precision` is what the weights take: as they are for a bundle, estimates for a
    checkpoint.
    """

    kind: str
    path: str
    model_type: str
    tasks: tuple[str, ...]
    components: tuple[ComponentInfo, ...]
    engines: tuple[dict[str, object], ...]
    bytes: int
    parameters: int
    bytes_per_precision: dict[str, int]
    checks: tuple[dict[str, object], ...]
    tokens_equal: dict[str, float]
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return not self.problems


def inspect(path: Path | str) -> Inspection:
    """Look at a bundle (every hash is computed again) or at a checkpoint (its headers are read).

    Raises BundleError for a bundle that is torn or unsafe, CheckpointError for a checkpoint that
    cannot be read. A checkpoint that can be read but not exported has `problems`.
    """
    root = Path(path)
    is_checkpoint = (root / "config.json").is_file() and not (root / MANIFEST_NAME).is_file()
    return _checkpoint(root) if is_checkpoint else _bundle(root)


def _bundle(root: Path) -> Inspection:
    bundle = open_bundle(root, full=True)
    manifest = bundle.manifest
    return Inspection(
        kind="bundle",
        path=str(root),
        model_type=manifest.source.model_type,
        tasks=bundle.tasks,
        components=tuple(_component(manifest, c) for c in manifest.components),
        engines=tuple(map(_engine, manifest.engines)),
        bytes=bundle.bytes,
        parameters=manifest.source.parameters,
        bytes_per_precision=_summed((c.precision, c.bytes) for c in manifest.components),
        checks=tuple(map(_check, manifest.checks.tasks)),
        tokens_equal=manifest.checks.tokens_equal,
        problems=(),
    )


def _component(manifest: Manifest, component: Component) -> ComponentInfo:
    own = [p for p in manifest.checks.parity if (p.component, p.precision) == (component.name, component.precision)]
    types = {m.name: m.source.model_type for m in manifest.models}
    return ComponentInfo(
        name=component.name,
        model=component.model,
        role=component.role,
        model_type=types.get(component.model, ""),
        precision=component.precision,
        parameters=component.parameters,
        bytes=component.bytes,
        opset=component.opset,
        parity_max_abs=own[-1].max_abs if own else None,
        parity_cosine=own[-1].cosine if own else None,
    )


def _engine(engine: Engine) -> dict[str, object]:
    return dict(engine.model_dump())


def _check(check: TaskCheck) -> dict[str, object]:
    return dict(check.model_dump())


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for key, n in pairs:
        sums[key] = sums.get(key, 0) + n
    return sums


def _checkpoint(root: Path) -> Inspection:
    from edgemm.export.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(root)
    parts = [(name, find_checkpoint(path)) for name, path in checkpoint.parts.items()]
    found = [_family(name, part) for name, part in parts]
    components = tuple(_part(name, part) for name, part in parts)
    parameters = sum(c.parameters for c in components)
    return Inspection(
        kind="checkpoint",
        path=str(root),
        model_type=checkpoint.model_type,
        tasks=tuple(dict.fromkeys(t for tasks, _ in found for t in tasks)),
        components=components,
        engines=(),
        bytes=sum(c.bytes for c in components),
        parameters=parameters,
        bytes_per_precision={p: math.ceil(parameters * n) for p, n in _BYTES_PER.items()},
        checks=(),
        tokens_equal={},
        problems=tuple(p for _, problems in found for p in problems),
    )


def _part(name: str, part: Checkpoint) -> ComponentInfo:
    return ComponentInfo(
        name=name,
        model=name,
        role="model",
        model_type=part.model_type,
        precision=str(part.config.get("dtype") or part.config.get("torch_dtype") or "fp32"),
        parameters=part.parameters,
        bytes=sum(f.stat().st_size for f in part.weight_files),
    )


def _family(name: str, part: Checkpoint) -> tuple[Sequence[str], list[str]]:
    """The tasks of the part's family, and what stands in the way of exporting it."""
    try:
        from edgemm.export import families
    except ImportError as error:
        return (), [f"{name}: {missing_extra('torch', 'export', error)}"]
    try:
        family = families.find(part.model_type)
    except CheckpointError as error:
        return (), [f"{name}: {error}"]
    try:
        families.check_modalities(part, family)
    except EdgemmError as error:
        return family.TASKS, [f"{name}: {error}"]
    return family.TASKS, []
