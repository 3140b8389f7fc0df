"""What a bundle or a checkpoint is, without loading a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.manifest import MANIFEST_NAME, Component, Engine, Manifest, TaskCheck
from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError

if TYPE_CHECKING:
    from edgemm.export.checkpoint import Checkpoint, Tensor
    from edgemm.export.families import FamilyFacts

# Bytes per parameter: int8 has one scale (2 bytes at most) for 32 weights.
_BYTES_PER = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0 + 2 / 32}
# As safetensors names them → as bundles do.
_PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "int8"}


@dataclass(frozen=True)
class ComponentInfo:
    """A graph of a bundle, or a modality of a checkpoint. `parity_*` are None without a comparison."""

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
    parts = {name: find_checkpoint(path) for name, path in checkpoint.parts.items()}
    families = {name: _family(part) for name, part in parts.items()}
    components = tuple(c for name, part in parts.items() for c in _parts_of(name, part, families[name]))
    parameters = sum(c.parameters for c in components)
    return Inspection(
        kind="checkpoint",
        path=str(root),
        model_type=checkpoint.model_type,
        tasks=tuple(dict.fromkeys(t for f in families.values() if f is not None for t in f.tasks)),
        components=components,
        engines=(),
        bytes=sum(f.stat().st_size for part in parts.values() for f in part.weight_files),
        parameters=parameters,
        bytes_per_precision={p: math.ceil(parameters * n) for p, n in _BYTES_PER.items()},
        checks=(),
        tokens_equal={},
        problems=tuple(p for name, part in parts.items() for p in _problems(name, part, families[name])),
    )


def _family(part: Checkpoint) -> FamilyFacts | None:
    """What is known of the part's family without importing it; None where none exports it."""
    from edgemm.export import families

    return families.known().get(part.model_type)


def _problems(name: str, part: Checkpoint, family: FamilyFacts | None) -> list[str]:
    """What stands in the way of exporting the part: an unknown family, modalities without weights."""
    from edgemm.export import families

    if family is None:
        try:
            families.facts(part.model_type)
        except CheckpointError as error:
            return [f"{name}: {error}"]
    missing = [
        (modality, prefix)
        for modality, prefixes in (family.needs.items() if family else ())
        for prefix in prefixes
        if not any(tensor.startswith(tuple(prefix.split("|"))) for tensor in part.tensors)
    ]
    return [
        f"{name}: a {part.model_type} without its {modality}: no weight begins with {prefix!r} "
        "(copy the whole checkpoint)"
        for modality, prefix in missing
    ]


def _parts_of(name: str, part: Checkpoint, family: FamilyFacts | None) -> list[ComponentInfo]:
    """The modalities of a part and what they share; the whole part where it has but one."""
    needs = family.needs if family is not None and len(family.needs) > 1 else {}
    groups: dict[str, list[Tensor]] = {modality: [] for modality in needs}
    for path, tensor in part.tensors.items():
        groups.setdefault(_modality(path, needs) or ("shared" if needs else "model"), []).append(tensor)
    if not groups:  # it comes as a graph, whose weights are inside
        size = sum(f.stat().st_size for f in part.weight_files)
        return [ComponentInfo(_named(name, "model"), name, "model", part.model_type, "fp32", 0, size)]
    return [
        ComponentInfo(
            name=_named(name, role.replace(" ", "_")),
            model=name,
            role=role.replace(" ", "_"),
            model_type=part.model_type,
            precision=_precision(tensors),
            parameters=sum(t.parameters for t in tensors),
            bytes=sum(t.bytes for t in tensors),
        )
        for role, tensors in groups.items()
        if tensors
    ]


def _named(model: str, role: str) -> str:
    return role if model == "main" else f"{model}.{role}"


def _modality(path: str, needs: Mapping[str, tuple[str, ...]]) -> str | None:
    """The modality whose weights stand nearest to `path` in the module tree; None where two are as near."""
    roots = {modality: [p for prefix in prefixes for p in prefix.split("|")] for modality, prefixes in needs.items()}
    near = {modality: max(_shared_depth(path, p) for p in found) for modality, found in roots.items()}
    best = [modality for modality, n in near.items() if n == max(near.values())]
    return best[0] if len(best) == 1 else None


def _shared_depth(a: str, b: str) -> int:
    """How many modules, from the root, two dotted names have in common."""
    same = (x == y for x, y in zip(a.split("."), b.split("."), strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _precision(tensors: Iterable[Tensor]) -> str:
    """What most of the bytes are stored in."""
    sums = _summed((t.dtype, t.bytes) for t in tensors)
    dtype = max(sums, key=lambda d: sums[d])
    return _PRECISIONS.get(dtype, dtype.lower())
