"""Engines of a whole bundle: what is fresh is kept, what cannot be built is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemm.bundle.manifest import Component
from edgemm.bundle.opening import Bundle
from edgemm.errors import BundleError, UsageError
from edgemm.runtimes import cuda, engines
from edgemm.runtimes.engines import Note, Plan, Tell
from edgemm.runtimes.tensorrt_api import installed_builder


@dataclass(frozen=True)
class Build:
    """`folder` holds the engines of `notes`; `kept` of them were fresh before. `refused`: component → why not."""

    folder: Path | None
    notes: tuple[Note, ...]
    kept: int
    refused: dict[str, str]


def build(bundle: Bundle, target: str, gpus: Sequence[str], only: Sequence[str], tell: Tell) -> Build:
    """Build the engines of a bundle for `target` and the architectures `gpus` ("sm86"), or for the GPU that is here.

    Raises RuntimeUnavailable where the target's library is not installed, UsageError for a component or a GPU that it
    does not know, BundleError where nothing can be built.
    """
    builder = installed_builder(target)
    fresh = {f.note.engine.options_sha256: f for f in engines.engines_of(bundle, builder) if not f.stale}
    gpus = gpus or [gpu.sm for gpu in cuda.gpus()[:1]]
    plans = [engines.plan(bundle, c, target, gpus) for c in components_of(bundle, only)]
    known = [fresh[p.digest] for p in plans if p.digest in fresh]
    waiting = [p for p in plans if p.digest not in fresh]
    refused: dict[str, str] = {}
    with engines.scratch_folder() as scratch:
        made = []
        for i, planned in enumerate(waiting):
            try:
                made.append(_one(bundle, planned, scratch, tell, i, len(waiting)))
            except BundleError as error:
                refused[planned.component.name] = str(error)
        folder = engines.keep(bundle, made) if made else None
    if refused and not made and not known:
        name, reason = next(iter(refused.items()))
        raise BundleError(f"no engine was built: {name}: {reason}", hint="the portable graphs run on onnxruntime")
    notes = (*(f.note for f in known), *(note for _, note in made))
    return Build(folder or (known[0].path.parent if known else None), notes, len(known), refused)


def _one(bundle: Bundle, planned: Plan, scratch: Path, tell: Tell, i: int, of: int) -> tuple[Path, Note]:
    name = planned.component.name
    place = scratch / name
    place.mkdir()
    return engines.build(bundle, planned, place, lambda at, share: tell(f"{name}: {at}", (i + share) / of))


def components_of(bundle: Bundle, only: Sequence[str]) -> list[Component]:
    """The components of a bundle, or `only` these. Raises UsageError for a name that it does not have."""
    components = {c.name: c for c in bundle.manifest.components}
    unknown = [name for name in only if name not in components]
    if unknown:
        raise UsageError(f"{bundle.name} has no component {unknown[0]}", hint=f"it has {', '.join(components)}")
    return [components[name] for name in only or components]
