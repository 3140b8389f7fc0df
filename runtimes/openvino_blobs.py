"""Models that OpenVINO has compiled, kept as files: beside the bundle's graphs in `engines/`, or in the user's cache.

A blob has a note, as every engine has (`edgemm.runtimes.engines`). Its key is what it was made from: the graph and its
weights, the version of OpenVINO, the device and what it can do, the options. It is read only after its note, its size
and its hash fit; whatever does not fit is passed over, and the portable graph is compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgemm.bundle.files import cache_dir, sha256_of
from edgemm.bundle.manifest import MANIFEST_NAME, Engine
from edgemm.errors import BundleError, StorageError
from edgemm.runtimes.engines import FOLDER, Note, put_engines
from edgemm.runtimes.lowering.cache import content_hash

FORM = 1
"""Raised whenever a model is changed in another way before it is compiled."""

TARGET = "openvino"
WORTH_S = 1.0
"""A model that is compiled in less is not kept."""

LIMIT_BYTES = 4_000_000_000
"""Of the user's cache; what was used longest ago goes first."""

_CAPABILITIES = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")


@dataclass(frozen=True)
class Key:
    """What a blob is for: the graph's file, the device and, as a hash, everything that it depends on."""

    path: Path
    device: str
    device_name: str
    version: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.path.stem}.{TARGET}.{self.digest[:12]}"

    @property
    def builder(self) -> str:
        return f"{TARGET} {self.version}"


@dataclass(frozen=True)
class Blob:
    """A compiled model, and why its graph was not lowered (nothing if it was)."""

    compiled: Any
    reason: str


_COLLECTED: ContextVar[tuple[Path, list[tuple[Path, Note]]] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting(folder: Path) -> Iterator[list[tuple[Path, Note]]]:
    """Whatever is loaded inside the block is compiled, never read, and written to `folder`; the list of it."""
    made: list[tuple[Path, Note]] = []
    token = _COLLECTED.set((folder, made))
    try:
        yield made
    finally:
        _COLLECTED.reset(token)


def key_of(core: Any, version: str, path: Path, device: str, about: Mapping[str, Any]) -> Key:
    """The key of the graph at `path`; `about` is what else the compiled model depends on."""
    can = [str(_property(core, device, name)) for name in _CAPABILITIES]
    text = path.read_bytes()
    depends = {
        "form": FORM,
        "version": version,
        "device": [device, *can],
        "graph": hashlib.sha256(text).hexdigest(),
        "weights": {str(p.relative_to(path.parent)): content_hash(p) for p in _weights(path, text)},
        "about": about,
    }
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
    return Key(path, device, can[0], version, digest)


def _property(core: Any, device: str, name: str) -> Any:
    try:
        return core.get_property(device, name)
    except RuntimeError:
        return ""


def _weights(path: Path, graph: bytes) -> list[Path]:
    """The files beside a graph that it names: more than it reads is no harm, less would be."""
    beside = (p for p in sorted(path.parent.rglob("*")) if p.is_file() and p != path)
    return [p for p in beside if str(p.relative_to(path.parent)).encode() in graph]


def places(path: Path) -> tuple[Path, ...]:
    """Where a blob of the graph at `path` may lie: in its bundle, in the cache."""
    return path.parent.parent / FOLDER, cache_dir(TARGET)


def found(key: Key) -> tuple[Path, Note] | None:
    """The file of a blob that can be used, and its note. Nothing of it is loaded."""
    for blob in _named(key):
        try:
            note = Note.model_validate_json(blob.with_suffix(".json").read_bytes())
            if _fits(key, blob, note):
                return blob, note
        except (OSError, ValidationError):
            continue
    return None


def _named(key: Key) -> list[Path]:
    """Files that say by their name that they are it: a component of a bundle need not be called as its file is."""
    names = f"*.{TARGET}.{key.digest[:12]}.engine"
    return [path for folder in places(key.path) for path in sorted(folder.glob(names))]


def _fits(key: Key, blob: Path, note: Note) -> bool:
    engine = note.engine
    same = (engine.target, engine.builder, engine.options_sha256) == (TARGET, key.builder, key.digest)
    return same and blob.stat().st_size == engine.bytes and content_hash(blob) == engine.sha256


def read_or_compile(core: Any, key: Key, config: Mapping[str, Any], compile_it: Callable[[], Blob]) -> Blob:
    """The model from its blob where there is one that fits, else compiled, and kept where that took long."""
    import time

    collected = _COLLECTED.get()
    known = found(key) if collected is None else None
    if known is not None:
        path, note = known
        try:
            blob = Blob(core.import_model(_tensor(path), key.device, dict(config)), "".join(note.warnings))
            _touch(path)
            return blob
        except (OSError, RuntimeError):
            # Whole, but not to this plug-in's liking: the graph serves.
            pass
    start = time.perf_counter()
    made = compile_it()
    seconds = time.perf_counter() - start
    if collected is not None:
        collected[1].append(_written(collected[0], key, made, seconds))
    elif _in_bundle(key.path) and (seconds >= WORTH_S or _named(key)):
        # One that is there, and did not serve, was worth it to somebody.
        _keep(key, made, seconds)
    return made


def _in_bundle(path: Path) -> bool:
    """Whether a graph is one of a whole bundle. Others, such as an export checks on its way, are loaded once."""
    return (path.parent.parent / MANIFEST_NAME).is_file()


def _tensor(path: Path) -> Any:
    """A file in memory that OpenVINO owns and leaves weights in. Those of a stream are copied twice."""
    from openvino import Shape, Tensor, Type

    tensor = Tensor(Type.u8, Shape([path.stat().st_size]))
    with path.open("rb") as file:
        if file.readinto(memoryview(tensor.data)) != tensor.byte_size:
            raise OSError(f"{path} became shorter while it was read")
    return tensor


def _touch(path: Path) -> None:
    """The note's time says when it was used last."""
    with suppress(OSError):
        os.utime(path.with_suffix(".json"))


def _written(folder: Path, key: Key, made: Blob, seconds: float) -> tuple[Path, Note]:
    path = folder / f"{key.name}.engine"
    try:
        stream = made.compiled.export_model()
    except RuntimeError as error:
        raise BundleError(
            f"what openvino compiles for {key.device} cannot be written",
            hint="build for the device itself: --device CPU, GPU or NPU",
        ) from error
    path.write_bytes(stream if isinstance(stream, bytes) else stream.getbuffer())
    engine = Engine(
        component=key.path.stem,
        target=TARGET,
        gpu=(key.device,),
        builder=key.builder,
        driver=key.device_name,
        sha256=sha256_of(path),
        options_sha256=key.digest,
        seconds=round(seconds, 3),
        bytes=path.stat().st_size,
    )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    why = (made.reason,) if made.reason else ()
    return path, Note(engine=engine, graph_sha256=key.digest, profile={}, peak_rss_mb=peak_mb, warnings=why)


def _keep(key: Key, made: Blob, seconds: float) -> None:
    """Into the cache, which may be full, or nobody's to write."""
    import tempfile

    folder = cache_dir(TARGET)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            put_engines(folder, [_written(Path(scratch), key, made, seconds)])
        _sweep(folder)
    except (OSError, StorageError, BundleError):
        pass


def _sweep(folder: Path) -> None:
    notes = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for note in notes:
        blob = note.with_suffix(".engine")
        total += blob.stat().st_size if blob.exists() else 0
        if total > LIMIT_BYTES:
            note.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
