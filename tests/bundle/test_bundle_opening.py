"""Opening: whatever is wrong with a bundle is refused, in one line that says what."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest

from edgemm.bundle.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME, SCHEMA_VERSION
from edgemm.bundle.opening import open_bundle
from edgemm.errors import BundleError, TaskUnavailable
from tests.bundle.small_bundle import FILES, change_manifest, small_bundle
from tests.export.exported import exported

OFFSETS_PER_FILE = 6


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path / "bundle")


def files_of(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def flip(path, offset, bit=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def age(path, seconds=10):
    """Make every file older than the span in which time stamps cannot be trusted."""
    then = time.time() - seconds
    for file in path.rglob("*"):
        os.utime(file, (then, then))


def test_opens(bundle):
    opened = open_bundle(bundle)
    assert opened.tasks == ("classify",)
    assert opened.file("host/labels.json").read_bytes() == FILES["host/labels.json"]
    assert opened.bytes == sum(len(d) for d in FILES.values()) + (bundle / MANIFEST_NAME).stat().st_size
    with pytest.raises(TaskUnavailable, match="cannot transcribe: it can classify"):
        opened.model_for("transcribe")
    with pytest.raises(BundleError, match="not a file of"):
        opened.file("host/other.json")


def test_every_byte_of_a_small_bundle_counts(bundle):
    """Every byte of the manifest and its hash, every seventh of the others."""
    for name in files_of(bundle):
        path = bundle / name
        whole = path.read_bytes()
        for offset in range(0, len(whole), 1 if name.startswith(MANIFEST_NAME) else 7):
            flip(path, offset, bit=offset % 8)
            with pytest.raises(BundleError):
                open_bundle(bundle)
            path.write_bytes(whole)
    assert open_bundle(bundle)


@pytest.mark.parametrize("remembered", [True, False])
def test_a_flipped_byte_of_a_real_bundle(tmp_path, remembered):
    bundle = shutil.copytree(exported("smolvlm").bundle, tmp_path / "real")
    if remembered:
        age(bundle)
        open_bundle(bundle)
    rng = np.random.default_rng(3)
    names = files_of(bundle)
    assert len(names) >= 8
    for name in names:
        path = bundle / name
        whole = path.read_bytes()
        for offset in {0, len(whole) - 1, *rng.integers(0, len(whole), OFFSETS_PER_FILE).tolist()}:
            flip(path, offset, bit=int(rng.integers(8)))
            with pytest.raises(BundleError):
                open_bundle(bundle)
            path.write_bytes(whole)
    assert open_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME, MANIFEST_HASH_NAME])
@pytest.mark.parametrize("damage", ["cut", "emptied", "grown", "missing"])
def test_torn_files(bundle, name, damage):
    path = bundle / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[:-1], "emptied": b"", "grown": whole + b"\0"}[damage])
    with pytest.raises(BundleError):
        open_bundle(bundle)


@pytest.mark.parametrize("wanted", ["a directory", "a fifo"])
def test_a_file_that_is_none(bundle, wanted):
    path = bundle / "graphs/model.data"
    path.unlink()
    path.mkdir() if wanted == "a directory" else os.mkfifo(path)
    with pytest.raises(BundleError, match="is not a file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "path", ["../outside.bin", "a/../../outside.bin", "/etc/passwd", "graphs\\model.onnx", "./x", ""]
)
@pytest.mark.parametrize("place", ["files", "component", "weights", "labels", "tokenizer"])
def test_paths_that_leave_the_bundle(bundle, tmp_path, path, place):
    (tmp_path / "outside.bin").write_bytes(b"x")
    entry = {"sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "bytes": 1}

    def change(manifest):
        manifest["files"][path if place != "tokenizer" else "x"] = entry
        if place == "component":
            manifest["components"][0]["file"] = path
        elif place == "weights":
            manifest["components"][0]["weights"] = [path]
        elif place == "labels":
            manifest["models"][0]["labels"] = path
        elif place == "tokenizer":
            if path == "./x":
                pytest.skip("stays inside, and is not a listed file when it is asked for")
            manifest["models"][0]["processing"]["text"] = {"tokenizer": path}

    change_manifest(bundle, change)
    with pytest.raises(BundleError):
        open_bundle(bundle)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_links_are_refused(bundle, tmp_path, what):
    path = bundle / ("graphs/model.data" if what == "file" else "graphs")
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("version", "hint"),
    [(SCHEMA_VERSION + 1, "--upgrade"), (0, "export it again"), ("1", "export"), (None, "export")],
)
def test_other_schemas(bundle, version, hint):
    change_manifest(bundle, lambda m: m.update(schema_version=version))
    with pytest.raises(BundleError, match="schema version") as caught:
        open_bundle(bundle)
    assert hint in caught.value.hint


def test_an_oversized_manifest_is_not_read(bundle):
    with (bundle / MANIFEST_NAME).open("ab") as file:
        file.truncate(40 << 20)
    with pytest.raises(BundleError, match="larger than 32 MB"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["components"].append(m["components"][0]),
        lambda m: m["models"][0]["components"].update(decoder="decoder"),
        lambda m: m["components"][0].update(file="graphs/model.data"),
        lambda m: m["components"][0].update(weights=["graphs/none.data"]),
        lambda m: m["components"][0].update(bytes=1 << 60),
        lambda m: m["components"][0].update(sha256="0" * 63),
        lambda m: m["components"][0].update(precision="fp8"),
        lambda m: m["files"].pop("graphs/model.data"),
        lambda m: m["files"]["graphs/model.data"].update(bytes=-1),
        lambda m: m.update(unknown=1),
        lambda m: m.update(models=[]),
        lambda m: m.update(components=m["components"] * 1025),
        lambda m: m.pop("files"),
    ],
)
def test_manifests_that_contradict_themselves(bundle, change):
    change_manifest(bundle, change)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '{"schema_version": 1}', "[" * 100_000])
def test_manifests_that_are_none(bundle, text):
    change_manifest(bundle, lambda _: None)
    (bundle / MANIFEST_NAME).write_text(text)
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()
    (bundle / MANIFEST_HASH_NAME).write_text(digest + "\n")
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_labels_that_are_not_listed(bundle):
    change_manifest(bundle, lambda m: m["models"][0].update(labels="host/none.json"))
    opened = open_bundle(bundle)
    with pytest.raises(BundleError, match="not a file of"):
        opened.file(opened.manifest.models[0].labels)


def test_places_that_are_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="no edgemm"):
        open_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert "edgemm export" in caught.value.hint


class TestMemory:
    """Hashes are computed once, and again whenever a file may have changed."""

    def hashed(self, bundle, monkeypatch, **options):
        from edgemm.bundle import opening

        seen = []
        original = opening.sha256_of
        monkeypatch.setattr(opening, "sha256_of", lambda p: seen.append(p.name) or original(p))
        open_bundle(bundle, **options)
        monkeypatch.undo()
        return sorted(seen)

    @pytest.fixture(autouse=True)
    def _aged(self, bundle, tmp_path, monkeypatch):
        from edgemm.bundle import opening

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(opening, "_RACY_S", 0.0)
        age(bundle)

    @pytest.fixture
    def memory(self, tmp_path, monkeypatch):
        """The environment of this test alone, kept by `monkeypatch.undo` too."""
        with pytest.MonkeyPatch.context() as patch:
            from edgemm.bundle import opening

            patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
            patch.setattr(opening, "_RACY_S", 0.0)
            with pytest.MonkeyPatch.context() as inner:
                yield inner

    def test_the_second_opening_hashes_nothing(self, bundle, memory):
        assert len(self.hashed(bundle, memory)) == len(FILES)
        assert self.hashed(bundle, memory) == []
        assert len(self.hashed(bundle, memory, full=True)) == len(FILES)

    @pytest.mark.parametrize("how", ["in place", "replaced"])
    def test_a_rewritten_file_with_its_old_times_is_seen(self, bundle, memory, how):
        open_bundle(bundle)
        path = bundle / "graphs/model.data"
        info = path.stat()
        target = path if how == "in place" else path.with_name("other")
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        with target.open("r+b" if how == "in place" else "wb") as file:
            file.write(data)
        target.replace(path)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert path.stat().st_mtime_ns == info.st_mtime_ns
        with pytest.raises(BundleError, match="was changed"):
            open_bundle(bundle)

    def test_a_copy_is_hashed_itself(self, bundle, memory, tmp_path):
        open_bundle(bundle)
        twin = shutil.copytree(bundle, tmp_path / "twin", copy_function=shutil.copy2)
        flip(twin / "graphs/model.data", 3)
        with pytest.raises(BundleError, match="was changed"):
            open_bundle(twin)

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', "null"])
    def test_a_torn_memory_is_ignored(self, bundle, memory, tmp_path, content):
        open_bundle(bundle)
        (file,) = (tmp_path / "cache" / "edgemm" / "verified").iterdir()
        assert json.loads(file.read_text())
        file.write_text(content)
        flip(bundle / "graphs/model.data", 3)
        with pytest.raises(BundleError, match="was changed"):
            open_bundle(bundle)

    def test_a_place_without_room_for_a_memory_opens_too(self, bundle, monkeypatch, tmp_path):
        (tmp_path / "full").write_text("a file where the cache directory should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
        assert open_bundle(bundle)
