"""A disk that fills up, a real one: one line, exit code 1, and nothing that could not be read is left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from edgemm.live.mcap_file import PICTURES, read_messages
from tests.cli.cli_runner import CHECKPOINT, CLIP, Cli

# The tiny one has no room for the first picture.
ROOMY, TINY = "1m", "8k"
SEEN = ("run", "--quiet", "--as-fast-as-possible", "--camera", str(CLIP), "--mic", "none", "--no-show")
RECORD = ("record", "--quiet", "--camera", str(CLIP), "-o")
Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a file system of a size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a small disk is not permitted here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def _refused(cli: Cli, *argv: str | Path) -> str:
    ran = cli(*argv)
    assert ran.code == 1, ran
    [line] = ran.errors
    assert line.startswith("error: ")
    assert "o space left" in line
    return line


@pytest.mark.parametrize("name", ["bundle", "bundle.edgemm"])
def test_export(cli: Cli, disk: Disk, name: str) -> None:
    place = disk(ROOMY)
    line = cli.refused("export", CHECKPOINT / "vad", "-o", place / name)
    assert f"no space left while writing {place / name} " in line
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "argv",
    [(*RECORD, "o.mcap"), (*SEEN, "--record", "o.mcap"), (*SEEN, "--record", "o.mp4"), (*SEEN, "--record", "o.png")],
)
def test_no_room_for_anything_readable(cli: Cli, disk: Disk, argv: tuple[str, ...]) -> None:
    place = disk(TINY)
    _refused(cli, *argv[:-1], place / argv[-1])
    assert not list(place.iterdir())


@pytest.mark.parametrize("argv", [(*RECORD,), (*SEEN, "--record")])
def test_what_was_recorded_until_then_can_be_read(cli: Cli, disk: Disk, argv: tuple[str, ...]) -> None:
    path = disk(ROOMY) / "o.mcap"
    assert "what was recorded until then is in it" in _refused(cli, *argv, path)
    assert sum(1 for _ in read_messages(path, PICTURES)) > 1
    assert list(path.parent.iterdir()) == [path]


def test_a_video_plays_as_far_as_it_goes(cli: Cli, disk: Disk) -> None:
    path = disk(ROOMY) / "o.mp4"
    _refused(cli, *SEEN, "--record", path)
    with av.open(str(path)) as video:
        frames = video.decode(video=0)
        assert sum(1 for _ in zip(range(10), frames, strict=False)) == 10
    assert list(path.parent.iterdir()) == [path]


def test_json_says_it_too(cli: Cli, disk: Disk) -> None:
    ran = cli(*RECORD, disk(TINY) / "o.mcap", "--json")
    assert ran.code == 1
    assert ran.json["error"]["code"] == "storage"
