"""Files that are added to a bundle that stands already: engines, reports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemm.bundle.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME
from edgemm.bundle.writing import writing


@contextmanager
def adding(bundle: Path) -> Iterator[Path]:
    """Give a twin of the directory `bundle`, to add files and a manifest to; it takes the bundle's place at the end.

    The twin shares the bundle's files, so none may be written to; replace them. A reader meets the old bundle or
    the new one. Raises StorageError where the place cannot be written; nothing has changed then.
    """
    with writing(bundle, overwrite=True) as twin:
        for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
            if path.name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
                continue
            target = twin / path.relative_to(bundle)
            target.parent.mkdir(parents=True, exist_ok=True)
            _share(path, target)
        yield twin


def _share(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
