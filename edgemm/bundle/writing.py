"""Writing a bundle so that a kill leaves nothing or a whole bundle under the target's name.

The bundle grows in a hidden directory beside its target, is flushed to disk, and takes the target's
name in one system call. A bundle that stands there already is exchanged in that same call, and
deleted only afterwards. Temporary directories of writers that died are swept by the next writer: each
holds a lock file that the kernel frees with its process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemm.bundle.files import fsync_dir, fsync_tree, sha256_of, storage_errors
from edgemm.bundle.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, FileEntry, Manifest
from edgemm.errors import BundleError, StorageError

_LOCK_NAME = ".lock"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _partial_prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def sweep(target: Path) -> list[Path]:
    """Delete the temporary directories that dead writers of `target` left; return what went."""
    swept = []
    for path in target.parent.glob(_partial_prefix(target) + "*"):
        if path.is_dir() and not path.is_symlink() and not _is_locked(path):
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path)
    return swept


def _is_locked(directory: Path) -> bool:
    try:
        with (directory / _LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_target(target: Path, *, overwrite: bool, marker: str = MANIFEST_NAME, what: str = "bundle") -> None:
    """Refuse a target that exists, before any work is done. `overwrite` admits a `what`, which has a file `marker`."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not (target / marker).is_file():
        raise BundleError(f"{target} exists and is no {what}", hint="choose another place with -o")
    if not overwrite:
        raise BundleError(f"{target} exists", hint="add --overwrite, or choose another -o")


@contextmanager
def writing(
    target: Path, *, overwrite: bool = False, marker: str = MANIFEST_NAME, what: str = "bundle"
) -> Iterator[Path]:
    """Give a directory to fill; when the block ends without an error it becomes `target`.

    Raises BundleError where the target exists (see `check_target`), StorageError where the disk is
    full or not writable. After an error nothing is left behind.
    """
    target = target.absolute()
    check_target(target, overwrite=overwrite, marker=marker, what=what)
    with beside(target) as partial:
        yield partial
        (partial / _LOCK_NAME).unlink()
        fsync_tree(partial)
        _put_in_place(partial, target)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target` that goes when the block ends, or with the next writer of `target`.

    Raises StorageError where the disk is full or not writable.
    """
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        partial = target.parent / f"{_partial_prefix(target)}{uuid.uuid4().hex[:12]}"
        partial.mkdir()
        try:
            with (partial / _LOCK_NAME).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        _exchange(partial, target)
    else:
        os.rename(partial, target)
    fsync_dir(target.parent)


def _exchange(a: Path, b: Path) -> None:
    """Swap two names in one system call (Linux renameat2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if result != 0:
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS):
            raise StorageError(
                f"this file system cannot swap {b} in one step",
                hint="delete the old bundle first, or choose another place with -o",
            )
        raise OSError(code, os.strerror(code), str(b))


def file_entries(directory: Path) -> dict[str, FileEntry]:
    """Size and hash of every file of a bundle under construction, by relative path; hidden files are not of it."""
    skip = {_LOCK_NAME, MANIFEST_NAME, MANIFEST_HASH_NAME}
    return {
        str(name): FileEntry(sha256=sha256_of(directory / name), bytes=(directory / name).stat().st_size)
        for name in sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
        if name.name not in skip and not name.parts[0].startswith(".")
    }


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `edgemm.json` and its hash."""
    path = directory / MANIFEST_NAME
    path.write_text(manifest.model_dump_json(indent=1, exclude_defaults=False) + "\n")
    (directory / MANIFEST_HASH_NAME).write_text(sha256_of(path) + "\n")
