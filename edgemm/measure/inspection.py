"""What a bundle or a checkpoint is, without loading a weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edgemm.bundle.manifest import MANIFEST_NAME, Component, Engine, Manifest, TaskCheck
from edgemm.bundle.opening import open_bundle


@dataclass(frozen=True)
class ComponentInfo:
    """A graph of a bundle or of another exporter, or a modality of a checkpoint.

    `parity_*` are None without a comparison. Of a checkpoint, `graphs` are what export would make of it and
    `bytes_per_precision` what they would take. `inputs` and `outputs` are those of a graph that was found:
    "pixel_values [batch_size, 3, 32, 32]".
    """

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
    graphs: tuple[str, ...] = ()
    bytes_per_precision: dict[str, int] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What was found at `path`. `problems` are what stands in the way of its use.

    `kind` is `bundle`, `checkpoint`, or `graphs` for what another exporter (`maker`) wrote.
    `bytes_per_precision` is what the weights take: as they are, or estimates for a checkpoint.
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
    maker: str = "edgemm"

    @property
    def usable(self) -> bool:
        return not self.problems


def inspect(path: Path | str) -> Inspection:
    """Look at a bundle (every hash is computed again), at a checkpoint or at what another exporter wrote.

    Of a checkpoint the headers are read, of foreign graphs what describes them.

    A checkpoint may be a hub id whose files are in the hub's local cache. Raises BundleError for a bundle that is torn
    or unsafe, CheckpointError for a checkpoint that cannot be read. A checkpoint that can be read but not exported has
    `problems`.
    """
    root = _root(path)
    is_checkpoint = (root / "config.json").is_file() and not (root / MANIFEST_NAME).is_file()
    if not is_checkpoint:
        return _bundle(root)
    from edgemm.measure.checkpoint_inspection import inspect_checkpoint

    return inspect_checkpoint(root)


def _root(path: Path | str) -> Path:
    from edgemm.bundle.archive import is_archive_name
    from edgemm.export import locate

    named = locate.is_hub_id(path) and not is_archive_name(Path(path))
    return locate.cached(str(path)) if named else Path(path)


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
        bytes_per_precision=summed((c.precision, c.bytes) for c in manifest.components),
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


def summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The numbers of equal keys added up."""
    sums: dict[str, int] = {}
    for key, n in pairs:
        sums[key] = sums.get(key, 0) + n
    return sums
