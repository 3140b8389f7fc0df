"""The command line in this process and in one of its own, and bundles to break."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemm.bundle.files import sha256_of
from edgemm.bundle.manifest import MANIFEST_HASH_NAME, MANIFEST_NAME
from edgemm.cli.app import invoke

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "samples" / "clip" / "clip.mp4"
CHECKPOINT = ROOT / "samples" / "checkpoint"
COMMAND = [sys.executable, "-m", "edgemm.cli.app"]


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]


class Cli:
    """`cli("inspect", path)`: runs here, with what file descriptors 1 and 2 got."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *argv: str | Path) -> Ran:
        self._capfd.readouterr()
        code = invoke([str(a) for a in argv])
        out, err = self._capfd.readouterr()
        return Ran(code, out, err)

    def refused(self, *argv: str | Path, code: int = 1) -> str:
        """The one line on stderr of a command that is refused, and that its JSON says the same."""
        ran = self(*argv)
        assert ran.code == code, ran
        assert not ran.out
        assert len(ran.errors) == 1, ran.err
        line = ran.errors[0]
        assert line.startswith("error: ")
        assert "Traceback" not in line
        error = json.loads(self(*argv, "--json").out.splitlines()[-1])["error"]
        assert set(error) == {"code", "message", "hint"}
        assert " ".join(error["message"].split()) in line
        return line


def own_process(*argv: str | Path, **more: Any) -> Ran:
    """The same in a process of its own."""
    env = os.environ | more.pop("env", {})
    done = subprocess.run(
        [*COMMAND, *map(str, argv)], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120,
        check=False, **more,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def copy_of(bundle: Path, target: Path) -> Path:
    """A copy that may be broken; weights are hard links where the file system allows."""

    def put(source: str, destination: str) -> None:
        try:
            os.link(source, destination)
        except OSError:
            shutil.copy2(source, destination)

    shutil.copytree(bundle, target, copy_function=put)
    return target


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it its right hash again."""
    path = bundle / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.unlink()
    path.write_text(json.dumps(manifest))
    (bundle / MANIFEST_HASH_NAME).unlink()
    (bundle / MANIFEST_HASH_NAME).write_text(sha256_of(path) + "\n")
