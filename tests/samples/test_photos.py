"""samples/photos.txt and the recipe that fetches its photographs agree; nothing is downloaded."""

import hashlib
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemm.export.frambicus.scenes.dataset import METADATA
from edgemm.export.frambicus.scenes.photos import write_photos

SAMPLES = Path(__file__).parents[2] / "samples"
PERMISSIVE = {
    "Apache-2.0", "BSD-3-Clause", "CC-BY", "CC-BY-2.0", "CC0-1.0", "CDLA-Permissive-1.0", "public domain",
}  # fmt: skip


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(SAMPLES / "recipes"))
    return importlib.import_module("photos")


def test_every_listed_photograph_has_a_source(recipe, tmp_path):
    pinned = recipe.pinned("test")
    for photo in pinned:
        cv2.imwrite(str(tmp_path / photo.name), np.zeros((20, 30, 3), np.uint8))
    written = write_photos(tmp_path / "out", tmp_path, SAMPLES / "photos.txt")
    names = [json.loads(line)["image"] for line in (written / METADATA).read_text().splitlines()]
    assert len(names) >= 40
    assert len(set(names)) == len(names)
    assert set(names) == {photo.name for photo in pinned}


def test_sets_share_no_photograph(recipe):
    photos = recipe.pinned("test") + recipe.pinned("train")
    assert len({photo.sha256 for photo in photos}) == len(photos)
    assert len({photo.name for photo in photos}) == len(photos)
    assert {photo.licence for photo in photos} <= PERMISSIVE
    assert all(re.fullmatch(r"[0-9a-f]{64}", photo.sha256) for photo in photos)
    assert all(re.fullmatch(r"[a-z0-9_]+\.[a-z]+", photo.name) for photo in photos)


def test_photographs_are_kept_checked_and_credited(recipe, tmp_path, monkeypatch):
    photo = replace(recipe.pinned("test")[0], sha256=hashlib.sha256(b"a bear").hexdigest())
    asked = []
    monkeypatch.setattr(recipe, "pinned", lambda wanted: [photo])
    monkeypatch.setattr(recipe, "_download", lambda url: asked.append(url) or b"a bear")
    for _ in range(2):
        assert recipe.build(tmp_path / "out", tmp_path / "cache", "test") == 1
    assert len(asked) == 1, "the second build reads the cache"
    assert (tmp_path / "out" / photo.name).read_bytes() == b"a bear"
    assert f"{photo.name}: {photo.licence}" in (tmp_path / "out/SOURCES.txt").read_text()

    monkeypatch.setattr(recipe, "_download", lambda url: b"a lion")
    with pytest.raises(recipe.RecipeError, match="sha256"):
        recipe.fetch(photo, tmp_path / "empty")


def test_a_broken_table_is_told(recipe, tmp_path):
    table = tmp_path / "photos.tsv"
    table.write_text("# comment\ntest\tmug.jpg\tnowhere\tmug.jpg\tCC0-1.0\tnobody\t00\n")
    with pytest.raises(recipe.RecipeError, match="line 2"):
        recipe.pinned("test", table)
