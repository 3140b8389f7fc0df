"""Small file work that must not go wrong: hashing, atomic writes, the cache directory."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemm.errors import StorageError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir(*parts: str) -> Path:
    """`$XDG_CACHE_HOME/edgemm/...` (`~/.cache` where the variable is not set); not created."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "edgemm", *parts)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a full, read-only or forbidden place into a `StorageError` that names `what`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"no space left while writing {what}",
                hint="free some space or choose another place with -o",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{what} is not writable: {error.strerror}", hint="choose another place with -o"
            ) from error
        raise


def fsync_dir(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held or all of `data`."""
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def fsync_tree(root: Path) -> None:
    """fsync every file and directory under `root`, leaves first."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(directory))
