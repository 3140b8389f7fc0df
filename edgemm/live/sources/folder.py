"""A folder of pictures as a camera: sorted by name, at a steady rate."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import SourceError
from edgemm.live.sources.base import Picture, Wish

FPS = 2.0
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class FolderReader:
    """Reads the pictures of one folder in natural order (2 before 10); counts broken ones."""

    def __init__(self, path: str, wish: Wish) -> None:
        self.decode_errors = 0
        self._path, self._wish = Path(path), wish
        self._files: list[Path] = []
        self._n = 0

    def open(self) -> None:
        """Lists the pictures. Raises SourceError where there are none."""
        try:
            entries = [entry for entry in self._path.iterdir() if entry.is_file()]
        except OSError as error:
            raise SourceError(f"{self._path} cannot be read: {error.strerror}") from error
        self._files = sorted((e for e in entries if e.suffix.lower() in SUFFIXES), key=_natural)
        if not self._files:
            raise SourceError(
                f"the folder {self._path} holds no pictures",
                hint=f"expected files that end in {', '.join(SUFFIXES)}",
            )

    def read(self) -> Picture | None:
        """The next picture; one that cannot be decoded is counted and left out."""
        while self._n < len(self._files):
            t_media_s = self._n / (self._wish.fps or FPS)
            image = _load(self._files[self._n])
            self._n += 1
            if image is not None:
                return _fit(image, self._wish.size_px), t_media_s
            self.decode_errors += 1
        if self.decode_errors == len(self._files):
            raise SourceError(f"no picture in {self._path} can be decoded")
        return None

    def close(self) -> None:
        """There is nothing to close."""


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _load(path: Path) -> NDArray[np.uint8] | None:
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _fit(image: NDArray[np.uint8], size_px: tuple[int, int] | None) -> NDArray[np.uint8]:
    import cv2

    if size_px is None or (image.shape[1], image.shape[0]) == size_px:
        return image
    return np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA), np.uint8)
