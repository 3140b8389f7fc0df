"""A bundle as one `.edgemm` file (an uncompressed zip), for shipping."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from edgemm.bundle.files import cache_dir, fsync_dir, sha256_of
from edgemm.bundle.manifest import MANIFEST_NAME
from edgemm.bundle.writing import beside, writing
from edgemm.errors import BundleError, StorageError

SUFFIX = ".edgemm"
_MAX_BYTES = 64 << 30
# What zipfile raises for damaged archives, besides its own error.
_TORN = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, UnicodeDecodeError, zlib.error,
)  # fmt: skip


def is_archive_name(path: Path) -> bool:
    """Whether a bundle of this name is one file."""
    return path.suffix == SUFFIX


def pack(bundle: Path, archive: Path) -> None:
    """Write the directory `bundle` as `archive`; the file appears whole or not at all."""
    archive = archive.absolute()
    with beside(archive) as place:
        _put(bundle, place / "zip", archive)


@contextmanager
def packing(archive: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give the name of a bundle directory to write; when the block ends without an error it becomes `archive`.

    Raises BundleError where something else stands there, or an archive and not `overwrite`; StorageError.
    """
    archive = archive.absolute()
    _check_archive(archive, overwrite=overwrite)
    with beside(archive) as place:
        bundle = place / archive.stem
        try:
            yield bundle
        except StorageError as error:
            raise StorageError(error.message.replace(str(bundle), str(archive)), hint=error.hint) from error
        _put(bundle, place / "zip", archive)


def _put(bundle: Path, partial: Path, archive: Path) -> None:
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
            file.write(path, str(path.relative_to(bundle)))
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(archive)
    fsync_dir(archive.parent)


def _check_archive(archive: Path, *, overwrite: bool) -> None:
    if not archive.exists() and not archive.is_symlink():
        return
    if not archive.is_file():
        raise BundleError(f"{archive} exists and is no file", hint="choose another place with -o")
    if not overwrite:
        raise BundleError(f"{archive} exists", hint="add --overwrite, or choose another -o")
    if not zipfile.is_zipfile(archive):
        raise BundleError(f"{archive} exists and is no bundle", hint="choose another place with -o")


def unpacked(archive: Path) -> Path:
    """The directory in the cache that holds `archive`'s files; unpacked at the first call."""
    target = cache_dir(sha256_of(archive), archive.stem)
    if (target / MANIFEST_NAME).is_file():
        return target
    try:
        with zipfile.ZipFile(archive) as file:
            _check_members(archive, file.infolist())
            with writing(target) as directory:
                for member in file.infolist():
                    _extract(file, member, directory)
    except _TORN as error:
        raise _torn(archive, error) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged offset before the file's start
            raise _torn(archive, error) from error
        raise
    return target


def _torn(archive: Path, error: Exception) -> BundleError:
    reason = str(error) or type(error).__name__
    return BundleError(f"{archive} is torn or not a bundle: {reason}", hint="copy it again")


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    if sum(m.file_size for m in members) > _MAX_BYTES:
        raise BundleError(f"{archive} declares more than {_MAX_BYTES >> 30} GB")
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if member.filename.startswith("/") or ".." in parts or "\\" in member.filename:
            raise BundleError(f"{archive} holds {member.filename!r}, which leaves the bundle")


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path) -> None:
    target = directory / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
