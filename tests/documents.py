"""The code blocks of documents, and how they are run: as a reader would, in a folder that looks like a clone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(?:^<!-- ([\w: ]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document. `mark` is the comment in the line before it, without its signs."""

    language: str
    text: str
    mark: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines that call edgemm, without their remarks."""
        lines = self.text.splitlines() if self.language == "sh" else []
        return [line.split("  #")[0].strip() for line in lines if line.startswith("edgemm ")]


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    return [Block(language, text, mark) for mark, language, text in _BLOCK.findall(document.read_text())]


def run_command(command: str, folder: Path) -> None:
    """Runs a command of edgemm as its installed program, and holds that it works."""
    tool = Path(sys.executable).with_name("edgemm")
    assert tool.is_file(), "install the project first: pip install -e ."
    result = _run([str(tool), *shlex.split(command)[1:]], folder)
    # A doctor that finds something to mend says so in its exit code.
    assert result.returncode == 0 or (command == "edgemm doctor" and result.returncode == 1), result.stderr
    assert "Traceback" not in result.stderr


def run_python(program: str, folder: Path) -> str:
    """Runs a program in a process of its own, holds that it works, and returns what it printed."""
    (folder / "example.py").write_text(program)
    result = _run([sys.executable, "example.py"], folder)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, timeout=900, env=environment, check=False
    )
