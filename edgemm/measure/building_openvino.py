"""What OpenVINO compiles of a bundle, made ahead of its first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemm.bundle.manifest import Component
from edgemm.bundle.opening import Bundle
from edgemm.errors import BundleError, missing_extra
from edgemm.measure.building import Build, components_of
from edgemm.runtimes import engines, openvino_blobs, registry
from edgemm.runtimes.base import SessionOptions
from edgemm.runtimes.engines import Note, Tell
from edgemm.tasks.graphs import Graphs

_TARGET = openvino_blobs.TARGET


def build_openvino(bundle: Bundle, options: SessionOptions, only: Sequence[str], tell: Tell) -> Build:
    """Compile the components of a bundle (or `only` these) as sessions with `options` load them.

    Raises RuntimeUnavailable where OpenVINO or the device is missing, UsageError for an unknown component, BundleError
    where nothing can be compiled.
    """
    if not registry.RUNTIMES[_TARGET].installed:
        raise missing_extra(_TARGET, registry.RUNTIMES[_TARGET].extra)
    components = components_of(bundle, only)
    refused: dict[str, str] = {}
    made: list[tuple[Path, Note]] = []
    with engines.scratch_folder() as scratch:
        for i, component in enumerate(components):
            tell(component.name, i / len(components))
            try:
                made += _one(bundle, component, options, scratch)
            except BundleError as error:
                refused[component.name] = str(error)
        if not made:
            name, reason = next(iter(refused.items()))
            raise BundleError(f"nothing was compiled: {name}: {reason}", hint="the portable graphs run on onnxruntime")
        folder = engines.keep(bundle, made, elsewhere=openvino_blobs.places(made[0][0])[1])
    return Build(folder, tuple(note for _, note in made), 0, refused)


def _one(bundle: Bundle, component: Component, options: SessionOptions, scratch: Path) -> list[tuple[Path, Note]]:
    entry = next(m for m in bundle.manifest.models if m.name == component.model)
    graphs = Graphs(bundle, entry, _TARGET, options)
    try:
        with openvino_blobs.collecting(scratch) as made:
            if component.role == "decoder" and bundle.manifest.states_of(component.name):
                graphs.decoder()
            else:
                graphs.session(component.role)
    finally:
        graphs.close()
    named = {"component": component.name}
    digest = engines.graph_hash(bundle, component)
    return [
        (path, note.model_copy(update={"engine": note.engine.model_copy(update=named), "graph_sha256": digest}))
        for path, note in made
    ]
