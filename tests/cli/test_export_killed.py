"""A whole export, killed anywhere between its first import and its last rename."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import cv2
import pytest

from edgemm.bundle.opening import open_bundle
from tests.checkpoints import efficientnet_lite0
from tests.cli.cli_runner import CHECKPOINT, CLIP, COMMAND, ROOT
from tests.export.exported import picture

KILLS = 10
COLD_KILLS = 2
# Has imported what takes most of an export's time; each line that it reads is a command line for a child of its own.
WARM = """
import os, sys
import edgemm.export.pipeline
from edgemm.cli.app import main
os.write(1, b"ready\\n")
while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = line.rstrip("\\n").split("\\t")
        main()
    os.setpgid(child, child)
    os.write(1, b"%d\\n" % child)
    os.write(1, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
Run = Callable[[float | None], int]


class Warm:
    """`run(after_s)` of one command line whose imports are done."""

    def __init__(self, argv: list[str]) -> None:
        self._line = "\t".join(["edgemm", *argv]).encode() + b"\n"
        start = time.perf_counter()
        self._server = subprocess.Popen(
            [sys.executable, "-c", WARM], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=_env()
        )
        assert self._read() == b"ready\n"
        self.imports_s = time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, after_s: float | None = None) -> int:
        """Exit code; SIGKILL to its process group `after_s` seconds in."""
        assert self._server.stdin is not None
        self._server.stdin.write(self._line)
        child = int(self._read())
        if not select.select([self._server.stdout], [], [], after_s)[0]:
            os.killpg(child, signal.SIGKILL)
        return int(self._read())

    def _read(self) -> bytes:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def cold(argv: list[str]) -> Run:
    """The same in a fresh process."""

    def run(after_s: float | None = None) -> int:
        null = subprocess.DEVNULL
        command = [*COMMAND, *argv]
        with subprocess.Popen(command, stdout=null, cwd=ROOT, env=_env(), start_new_session=True) as process:
            try:
                process.wait(after_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode

    return run


def _env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _argv(checkpoint: Path, examples: Path, target: Path) -> list[str]:
    return [
        "export", str(checkpoint), "--int8", "--calib", str(examples), "-o", str(target), "--overwrite", "--quiet",
    ]  # fmt: skip


def _beside(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir() if p != target)


def _spread(duration_s: float, n: int) -> list[float]:
    """One random moment in each n-th of the duration, shuffled."""
    rng = random.Random(11)
    return rng.sample([duration_s * (i + rng.random()) / n for i in range(n)], n)


def _killed_everywhere(run: Run, target: Path, kills: int) -> None:
    """Whatever stood under the target's name before a kill, after it nothing or a whole bundle does."""
    start = time.perf_counter()
    assert run(None) == 0
    duration_s = time.perf_counter() - start
    tasks = open_bundle(target, full=True).tasks
    shutil.rmtree(target)
    met = stale = 0
    for after_s in _spread(duration_s, kills):
        stood = target.exists()
        met += run(after_s) == -signal.SIGKILL
        assert target.exists() >= stood
        if target.exists():
            assert open_bundle(target, full=True).tasks == tasks
        stale += bool(_beside(target))
    assert met >= kills // 2, "the kills came too late to prove anything"
    assert stale, "no kill met the writing"
    assert run(None) == 0
    assert _beside(target) == []
    assert open_bundle(target, full=True).tasks == tasks


def test_killed_at_ten_moments(tmp_path: Path) -> None:
    example = tmp_path / "example.png"
    assert cv2.imwrite(str(example), picture(48, 64))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "bundle"
    argv = _argv(efficientnet_lite0(tmp_path / "checkpoint"), example, target)
    with Warm(argv) as warm:
        for after_s in _spread(warm.imports_s, COLD_KILLS):
            assert cold(argv)(after_s) == -signal.SIGKILL
            assert list(target.parent.iterdir()) == []
        _killed_everywhere(warm.run, target, KILLS - COLD_KILLS)


@pytest.mark.slow
def test_the_projects_own_export_killed_at_ten_moments(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    _killed_everywhere(cold(_argv(CHECKPOINT, CLIP, target)), target, KILLS)
