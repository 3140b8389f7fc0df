"""A bundle as one `.edgemm` file (an uncompressed zip), for shipping."""

from __future__ import annotations

import errno
import shutil
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from edgemm.bundle.files import cache_dir, sha256_of, storage_errors
from edgemm.bundle.manifest import MANIFEST_NAME
from edgemm.bundle.writing import writing
from edgemm.errors import BundleError

_MAX_BYTES = 64 << 30
# What zipfile raises for damaged archives, besides its own error.
_TORN = (
    zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, UnicodeDecodeError, zlib.error,
)  # fmt: skip


def pack(bundle: Path, archive: Path) -> None:
    """Write the directory `bundle` as `archive`; the file appears whole or not at all."""
    partial = archive.with_name(f".{archive.name}.partial")
    with storage_errors(str(archive)):
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
                for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
                    file.write(path, str(path.relative_to(bundle)))
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)


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
