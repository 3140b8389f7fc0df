"""Every command of the README is run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
# Run by the tests of the families and by the export test: here they would only repeat minutes of tracing.
ELSEWHERE = {
    "edgemm export my/whisper -o bundle --int8 --calib my/recordings",
    "edgemm finetune my/whisper --data my/recordings -o tuned --epochs 5 --patience 2 --freeze encoder",
}
SLOW = {"edgemm export --int8 -o bundle"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[str]:
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("edgemm ")]


def _parameters() -> list:
    return [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in _commands() if c not in ELSEWHERE]


@pytest.fixture
def folder(tmp_path, repository) -> Path:
    """A directory in which the README's relative paths mean what they mean in a clone."""
    for name in ("edgemm", "samples"):
        (tmp_path / name).symlink_to(repository / name)
    return tmp_path


def _run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.mark.parametrize("command", _parameters())
def test_command_works(command, folder):
    tool = Path(sys.executable).with_name("edgemm")
    assert tool.is_file(), "install the project first: pip install -e ."
    result = _run([str(tool), *shlex.split(command)[1:]], folder)
    # A doctor that finds something to mend says so in its exit code.
    assert result.returncode == 0 or (command == "edgemm doctor" and result.returncode == 1), result.stderr
    assert "Traceback" not in result.stderr


def test_every_command_is_known_here():
    assert set(_commands()) >= ELSEWHERE | SLOW
    assert len(_commands()) >= 10


def test_python_example_runs(folder, repository):
    (example,) = _blocks("python")
    assert "edgemm.stream" in example
    script = folder / "example.py"
    script.write_text(example)
    result = _run([sys.executable, "example.py"], folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Label(label=" in result.stdout
    assert "TranscriptEvent" in result.stdout


def test_the_two_commands_are_one_line_each():
    for name in ("run", "tests"):
        (block,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        assert len(block.strip().splitlines()) == 1


def test_pictures_exist(repository):
    for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", README):
        assert (repository / path).stat().st_size > 10_000
