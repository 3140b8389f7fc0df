"""A bundle of a few hundred bytes, whole and valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemm.bundle.files import sha256_of
from edgemm.bundle.manifest import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    Component,
    Manifest,
    ModelEntry,
    Processing,
    Source,
)
from edgemm.bundle.writing import file_entries, write_manifest, writing

FILES = {
    "graphs/model.onnx": b"a graph, as far as a bundle cares",
    "graphs/model.data": bytes(range(256)) * 8,
    "host/labels.json": b'["one", "two"]\n',
}
_ZERO = "0" * 64


def fill(directory: Path, *, mark: str = "first") -> Manifest:
    """Write the files and the manifest into `directory`; `mark` is told in the manifest's source."""
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = Source(id=mark, sha256=_ZERO, model_type="test", tasks=("classify",))
    component = Component(
        name="model",
        model="main",
        role="model",
        precision="fp32",
        file="graphs/model.onnx",
        weights=("graphs/model.data",),
        sha256=sha256_of(directory / "graphs/model.onnx"),
        bytes=1,
        parameters=1,
        opset=20,
        inputs=(),
        outputs=(),
    )
    entry = ModelEntry(
        name="main",
        source=source,
        tasks=("classify",),
        components={"model": "model"},
        processing=Processing(),
        labels="host/labels.json",
    )
    manifest = Manifest(
        edgemm_version="0",
        source=source,
        models=(entry,),
        components=(component,),
        files=file_entries(directory),
    )
    write_manifest(directory, manifest)
    return manifest


def small_bundle(path: Path, **options: Any) -> Path:
    """A whole bundle at `path`."""
    with writing(path, overwrite=True) as partial:
        fill(partial, **options)
    return path


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the manifest and make its hash fit again, as someone with bad intentions would."""
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    (bundle / MANIFEST_HASH_NAME).write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
