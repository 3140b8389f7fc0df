"""Writing leaves nothing or a whole bundle under the target's name, whatever happens in between."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgemm.bundle.files import write_atomically
from edgemm.bundle.opening import open_bundle
from edgemm.bundle.writing import sweep, writing
from edgemm.errors import BundleError, EdgemmError, StorageError

KILLS = 10
WRITER = """
import shutil, sys, time
from pathlib import Path
from edgemm.bundle.writing import writing
source, target = Path(sys.argv[1]), Path(sys.argv[2])
print("begin", flush=True)
with writing(target, overwrite=True) as partial:
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = partial / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        with copy.open("wb") as file:
            for i in range(0, len(data), 1 << 20):
                file.write(data[i : i + (1 << 20)])
                time.sleep(0.005)
print("end", flush=True)
"""


@pytest.fixture
def source(repository) -> Path:
    return repository / "edgemm/default/bundle"


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def write(source: Path, target: Path, **options) -> None:
    with writing(target, **options) as partial:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            copy = partial / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_what_was_written_opens(source, tmp_path):
    write(source, tmp_path / "b")
    assert open_bundle(tmp_path / "b", full=True).tasks
    assert leftovers(tmp_path) == []


def test_an_error_leaves_nothing(tmp_path):
    def write_half():
        with writing(tmp_path / "b") as partial:
            (partial / "half").write_text("x")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_existing_targets_are_refused_before_any_work(source, tmp_path):
    write(source, tmp_path / "b")
    with pytest.raises(BundleError, match="exists") as caught, writing(tmp_path / "b"):
        pytest.fail("the block must not run")
    assert "--overwrite" in caught.value.hint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(BundleError, match="no bundle"), writing(tmp_path / "mine", overwrite=True):
        pytest.fail("the block must not run")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_overwriting_swaps(source, tmp_path):
    write(source, tmp_path / "b")
    before = (tmp_path / "b").stat().st_ino
    write(source, tmp_path / "b", overwrite=True)
    assert (tmp_path / "b").stat().st_ino != before
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("standing", [False, True], ids=["new", "over an old one"])
def test_killed_at_random_moments(source, tmp_path, standing):
    target = tmp_path / "b"
    if standing:
        write(source, target)
    rng = random.Random(7)
    interrupted = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(source), str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.45))
            process.send_signal(signal.SIGKILL)
            interrupted += "end" not in process.stdout.read()
        if standing:
            assert target.exists()
        if target.exists():
            open_bundle(target, full=True)
    assert interrupted >= KILLS // 2, "the kills came too late to prove anything"
    sweep(target)
    assert leftovers(tmp_path) == []


def test_sweep_spares_a_living_writer(source, tmp_path):
    with writing(tmp_path / "b") as partial:
        assert sweep(tmp_path / "b") == []
        assert partial.is_dir()
        shutil.copytree(source, partial, dirs_exist_ok=True)
    open_bundle(tmp_path / "b")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_leaves_nothing(source, small_disk):
    with pytest.raises(StorageError, match="no space left"):
        write(source, small_disk / "b")
    assert list(small_disk.iterdir()) == []


def test_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "settings.json"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EdgemmError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]
