"""Lowered graphs in the user's cache: made once for a graph, its weights and a capacity, checked before each use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle.files import cache_dir, sha256_of, write_atomically
from edgemm.errors import StorageError
from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering import processor
from edgemm.runtimes.lowering.graph import Graph, Unrecognised

FORM, ENCODER_FORM = 1, 3
"""Raised whenever the rewriter of decoders, or of encoders, writes another graph for the same input."""

_LISTING = "lowered.json"
_RACY_S = 2.0


@dataclass(frozen=True)
class Lowered:
    """The file of a lowered graph, or None and the reason why the portable one is used."""

    path: Path | None
    reason: str = ""


def lowered_decoder(path: Path, states: Sequence[StatePort], capacity: int) -> Lowered:
    """The lowered form of the decoder graph at `path`, from the cache where it lies there whole."""

    def make() -> Graph:
        from edgemm.runtimes.lowering.onnxruntime_decoder import lower

        return lower(path, states, capacity)

    about = {"form": FORM, "capacity": capacity, "states": [asdict(s) for s in states]}
    return _lowered(path, about, "decoder", make)


def lowered_encoder(path: Path) -> Lowered:
    """The lowered form of the stateless graph at `path`, from the cache where it lies there whole."""
    matrices = processor.multiplies_matrices()

    def make() -> Graph:
        from edgemm.runtimes.lowering.encoder import lower

        return lower(path, matrices=matrices)

    return _lowered(path, {"encoder_form": ENCODER_FORM, "matrices": matrices}, "encoder", make)


def _lowered(path: Path, about: Mapping[str, Any], name: str, make: Callable[[], Graph]) -> Lowered:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        return Lowered(None, f"onnx cannot be loaded: {error}")
    try:
        target = cache_dir("lowered", _key(path, about))
        if not _whole(target):
            _make(target, name, make)
    except Unrecognised as error:
        return Lowered(None, f"the graph is not recognised: {error}")
    except (LookupError, ValueError) as error:
        return Lowered(None, f"the graph is not recognised: {type(error).__name__}: {error}")
    except (OSError, StorageError) as error:
        return Lowered(None, f"the lowered graph cannot be kept: {error}")
    return Lowered(target / f"{name}.onnx")


def _key(path: Path, about: Mapping[str, Any]) -> str:
    """Hash of the graph, of every weight that it reads, and of what it is lowered for."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    text = path.read_bytes()
    tensors = onnx.load_from_string(text).graph.initializer
    files = {ExternalDataInfo(t).location for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL}
    whole = {
        **about,
        "graph": hashlib.sha256(text).hexdigest(),
        "weights": {f: content_hash(path.parent / f) for f in sorted(files)},
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a file, remembered by its place, size, times and inode."""
    info = path.stat()
    stamp = f"{path.absolute()} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"
    memory = cache_dir("hashes", hashlib.sha256(stamp.encode()).hexdigest())
    try:
        known = memory.read_text()
    except OSError:
        known = ""
    if len(known) == 64:
        return known
    found = sha256_of(path)
    if time.time() - max(info.st_mtime, info.st_ctime) > _RACY_S:
        write_atomically(memory, found.encode())
    return found


def _whole(target: Path) -> bool:
    """Whether everything that was written still lies there unchanged."""
    try:
        listing = json.loads((target / _LISTING).read_bytes())
        return bool(listing) and all(content_hash(target / name) == digest for name, digest in listing.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(target: Path, name: str, make: Callable[[], Graph]) -> None:
    """Lower beside `target` and rename. Another process may do the same meanwhile: either result will do."""
    from edgemm.runtimes.lowering.onnxruntime_decoder import save

    graph = make()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        save(graph, partial, name)
        listing = {p.name: sha256_of(p) for p in sorted(partial.iterdir())}
        (partial / _LISTING).write_text(json.dumps(listing))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not _whole(target):
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
