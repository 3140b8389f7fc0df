"""Opening a bundle: nothing of it is used before it was checked.

Every refusal says what was wrong, what was expected and what to run next. Hashes are computed in full
the first time and remembered by size, time and inode afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgemm.bundle.archive import is_archive_name, unpacked
from edgemm.bundle.files import cache_dir, sha256_of, write_atomically
from edgemm.bundle.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Component,
    FileEntry,
    Manifest,
    ModelEntry,
)
from edgemm.errors import BundleError, StorageError, TaskUnavailable

_MANIFEST_MAX_BYTES = 32 << 20
_RACY_S = 2.0
_AGAIN = "export it again, or copy it again and compare edgemm.json.sha256"


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle: a directory and its manifest."""

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t for m in self.manifest.models for t in m.tasks))

    @property
    def bytes(self) -> int:
        """Bytes of the whole bundle, manifest included."""
        own = (self.path / MANIFEST_NAME).stat().st_size
        return own + sum(f.bytes for f in self.manifest.files.values())

    def model_for(self, task: str) -> ModelEntry:
        """The first model that does `task`; TaskUnavailable where there is none."""
        for model in self.manifest.models:
            if task in model.tasks:
                return model
        raise TaskUnavailable(
            f"the bundle {self.name} cannot {task}: it can {', '.join(self.tasks)}",
            hint=f"export a checkpoint whose model does {task}",
        )

    def component(self, model: ModelEntry, role: str) -> Component:
        """The graph that plays `role` in `model`."""
        return self.manifest.component(model.components[role])

    def file(self, relative: str) -> Path:
        """Absolute path of one of the bundle's files; only listed files can be asked for."""
        if relative not in self.manifest.files:
            raise BundleError(f"{relative} is not a file of the bundle {self.name}")
        return self.path / relative


def open_bundle(path: str | os.PathLike[str], *, full: bool = False) -> Bundle:
    """Open a bundle directory or a `.edgemm` file.

    `full` computes every hash again instead of trusting what an earlier opening found.
    Raises BundleError for anything that is not a whole, safe bundle of a known schema.
    """
    root = Path(path)
    if root.is_file() and is_archive_name(root):
        root = unpacked(root)
    root = root.absolute()
    text, digest = _read_manifest(root)
    manifest = _parse(root, text)
    _check_consistent(root, manifest)
    _verify(root, manifest, digest, full=full)
    return Bundle(root, manifest, digest)


def _read_manifest(root: Path) -> tuple[bytes, str]:
    path = root / MANIFEST_NAME
    if not root.exists():
        raise BundleError(f"{root} does not exist", hint="run: edgemm export -o PATH")
    if not path.is_file():
        raise BundleError(
            f"{root} is not a bundle: it has no {MANIFEST_NAME}",
            hint=f"run: edgemm export {root} -o bundle"
            if (root / "config.json").exists()
            else "give a bundle's directory or its .edgemm file",
        )
    if path.stat().st_size > _MANIFEST_MAX_BYTES:
        raise BundleError(f"{path} is larger than {_MANIFEST_MAX_BYTES >> 20} MB", hint=_AGAIN)
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    try:
        expected = (root / MANIFEST_HASH_NAME).read_bytes()
    except OSError as error:
        raise BundleError(f"{root}: {MANIFEST_HASH_NAME} is missing", hint=_AGAIN) from error
    if expected != f"{digest}\n".encode():
        raise BundleError(
            f"{path} does not match {MANIFEST_HASH_NAME}: one of the two was changed or is torn",
            hint=_AGAIN,
        )
    return text, digest


def _parse(root: Path, text: bytes) -> Manifest:
    try:
        version = json.loads(text).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{root / MANIFEST_NAME} is not a JSON object", hint=_AGAIN) from error
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"{root} has schema version {version!r}; this edgemm reads {SCHEMA_VERSION}",
            hint="run: pip install --upgrade edgemm" if newer else "export it again",
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{root / MANIFEST_NAME} is not valid at {where}: {first['msg']}", hint=_AGAIN) from error


def _check_consistent(root: Path, manifest: Manifest) -> None:
    names = [c.name for c in manifest.components]
    if len(set(names)) != len(names):
        raise BundleError(f"{root}: two components have one name", hint=_AGAIN)
    for model in manifest.models:
        for role, name in model.components.items():
            if name not in names:
                raise BundleError(f"{root}: {model.name} lacks its {role} ({name})", hint=_AGAIN)
    for component in manifest.components:
        for file in (component.file, *component.weights):
            if file not in manifest.files:
                raise BundleError(f"{root}: {file} of {component.name} is not listed", hint=_AGAIN)
        if manifest.files[component.file].sha256 != component.sha256:
            raise BundleError(f"{root}: {component.name} has two hashes", hint=_AGAIN)


def _verify(root: Path, manifest: Manifest, digest: str, *, full: bool) -> None:
    memory = cache_dir("verified", f"{digest}.json")
    known = {} if full else _recall(memory)
    seen: dict[str, list[int]] = {}
    for relative, entry in manifest.files.items():
        stamp = _check_file(root, relative, entry)
        if known.get(str(root / relative)) != stamp:
            _check_hash(root / relative, entry)
        if time.time() - max(stamp[1:3]) / 1e9 > _RACY_S:
            seen[str(root / relative)] = stamp
    if seen != known:
        try:
            write_atomically(memory, json.dumps(seen).encode())
        except (OSError, StorageError):
            return


def _recall(memory: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _check_file(root: Path, relative: str, entry: FileEntry) -> list[int]:
    path = root
    for part in Path(relative).parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{relative} of {root} is a link; a bundle holds its own files", hint=_AGAIN)
    try:
        info = path.stat()
    except OSError as error:
        raise BundleError(f"{relative} of {root} is missing", hint=_AGAIN) from error
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(f"{relative} of {root} is not a file", hint=_AGAIN)
    if info.st_size != entry.bytes:
        raise BundleError(
            f"{relative} of {root} is torn: {info.st_size} bytes, {entry.bytes} expected",
            hint=_AGAIN,
        )
    # The time of the last change of the inode cannot be set back, as the other one can.
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def _check_hash(path: Path, entry: FileEntry) -> None:
    found = sha256_of(path)
    if found != entry.sha256:
        raise BundleError(f"{path} was changed: sha256 {found[:12]}…, {entry.sha256[:12]}… expected", hint=_AGAIN)
