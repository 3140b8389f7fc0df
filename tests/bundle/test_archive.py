"""A bundle as one file: round trip, torn files, and members that would leave the bundle."""

from __future__ import annotations

import shutil
import stat
import zipfile

import pytest

from edgemm.bundle.archive import pack, packing
from edgemm.bundle.opening import open_bundle
from edgemm.errors import BundleError, StorageError
from tests.bundle.small_bundle import fill, small_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgemm"


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "b.edgemm"
    pack(small_bundle(tmp_path / "b"), path)
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def unpacked(cache):
    """Bundles in the cache; whole ones are the only things that may be there."""
    return [p for p in cache.glob("*/*") if p.parent.name != "verified"] if cache.exists() else []


def test_round_trip(archive, tmp_path):
    opened = open_bundle(archive)
    assert contents(opened.path) == contents(tmp_path / "b")
    assert opened.sha256 == open_bundle(tmp_path / "b").sha256
    again = open_bundle(archive)
    assert again.path == opened.path
    assert not list(tmp_path.glob(".*"))


def test_the_cached_copy_is_checked_too(archive):
    path = open_bundle(archive).path / "graphs" / "model.data"
    data = bytearray(path.read_bytes())
    data[5] ^= 4
    path.write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        open_bundle(archive)


@pytest.mark.parametrize("kept", [0, 10, 500, -1, -30])
def test_torn(archive, cache, kept):
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(BundleError, match="torn or not a bundle"):
        open_bundle(archive)
    assert unpacked(cache) == []


def test_every_flipped_byte_is_refused_or_harmless(archive, tmp_path):
    """Bytes that the zip format does not use may flip; what is opened is the bundle or nothing."""
    whole = archive.read_bytes()
    expected = contents(tmp_path / "b")
    refused = 0
    for offset in range(0, len(whole), 1):
        data = bytearray(whole)
        data[offset] ^= 1 << offset % 8
        archive.write_bytes(data)
        try:
            opened = open_bundle(archive)
        except BundleError:
            refused += 1
        else:
            assert contents(opened.path) == expected
    assert refused > 0.8 * len(whole)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil-edgemm", "a\\..\\evil", "graphs/../../evil"])
def test_members_that_leave_the_bundle(archive, cache, tmp_path, name):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(zipfile.ZipInfo(name), b"evil")
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(archive)
    assert unpacked(cache) == []
    assert not list(tmp_path.rglob("evil*"))


def test_a_link_inside_is_not_followed(archive, tmp_path):
    """A link becomes a small file with the link's text: never a way out."""
    (tmp_path / "secret").write_bytes(b"x" * 2048)
    link = zipfile.ZipInfo("graphs/model.data")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    small_bundle(tmp_path / "c")
    with zipfile.ZipFile(tmp_path / "c.edgemm", "w") as file:
        for path in sorted(p for p in (tmp_path / "c").rglob("*") if p.is_file()):
            relative = str(path.relative_to(tmp_path / "c"))
            if relative == link.filename:
                file.writestr(link, str(tmp_path / "secret"))
            else:
                file.write(path, relative)
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "c.edgemm")


def test_an_absurd_size_is_refused_unread(archive, monkeypatch):
    from edgemm.bundle import archive as module

    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="declares more than"):
        open_bundle(archive)


def test_a_zip_that_holds_no_bundle(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.edgemm", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(BundleError, match=r"no edgemm\.json"):
        open_bundle(tmp_path / "x.edgemm")


def test_packing_replaces_whole(archive, tmp_path):
    before = archive.read_bytes()
    shutil.rmtree(tmp_path / "b" / "graphs")
    small_bundle(tmp_path / "b", mark="second")
    pack(tmp_path / "b", archive)
    assert archive.read_bytes() != before
    assert open_bundle(archive).manifest.source.id == "second"


def test_packing_what_is_being_written(tmp_path):
    target = tmp_path / "new" / "c.edgemm"
    with packing(target) as directory:
        small_bundle(directory)
        assert not target.exists()
    assert open_bundle(target).name == "c"
    assert [p.name for p in target.parent.iterdir()] == ["c.edgemm"]


def test_an_error_while_packing_keeps_the_old_one(archive):
    before = archive.read_bytes()

    def fail():
        with packing(archive, overwrite=True) as directory:
            directory.mkdir()
            fill(directory, mark="second")
            raise StorageError(f"no space left while writing {directory}")

    with pytest.raises(StorageError, match=f"no space left while writing {archive}$"):
        fail()
    assert archive.read_bytes() == before
    assert sorted(p.name for p in archive.parent.iterdir()) == ["b", "b.edgemm"]


def test_the_next_packing_sweeps_what_a_killed_one_left(archive):
    stale = archive.with_name(f".{archive.name}.partial-0123")
    stale.mkdir()
    (stale / "zip").write_bytes(b"half")
    pack(archive.parent / "b", archive)
    assert sorted(p.name for p in archive.parent.iterdir()) == ["b", "b.edgemm"]
