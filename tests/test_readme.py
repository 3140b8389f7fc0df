"""Every command of the README is run."""

import re
import shutil
from pathlib import Path

import pytest

import edgemm
from edgemm.serve.endpoint import Endpoint
from tests.documents import blocks, run_command, run_python

DOCUMENT = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = blocks(DOCUMENT)
COMMANDS = [command for block in BLOCKS for command in block.commands]
# Run by the tests of the families and by the export test: here they would only repeat minutes of tracing.
ELSEWHERE = {
    "edgemm export my/whisper -o bundle --int8 --calib my/recordings",
    "edgemm finetune my/whisper --data my/recordings -o tuned --epochs 5 --patience 2 --freeze encoder",
    "edgemm distill my/whisper --data my/recordings -o half --student half-depth --features 1.0",
    "edgemm distill my/whisper --data my/recordings -o words --student my/moonshine --sequence",
    "edgemm distill my/whisper --data my/recordings -o ready --qat int4",
    "edgemm label my/whisper --data my/recordings -o labelled --ray --workers 8",
}
SLOW = {"edgemm export --int8 -o bundle"}


def _parameters() -> list:
    return [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in COMMANDS if c not in ELSEWHERE]


@pytest.fixture
def folder(tmp_path, repository, request) -> Path:
    """A directory in which the README's relative paths mean what they mean in a clone."""
    (tmp_path / "samples").symlink_to(repository / "samples")
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params["command"].startswith("edgemm build"):
        # engines are written into the bundle, which belongs to every other test as it is
        shutil.copytree(repository / "edgemm/default", tmp_path / "edgemm/default")
    else:
        (tmp_path / "edgemm").symlink_to(repository / "edgemm")
    return tmp_path


@pytest.mark.parametrize("command", _parameters())
def test_command_works(command, folder):
    run_command(command, folder)


def test_every_command_is_known_here():
    assert set(COMMANDS) >= ELSEWHERE | SLOW
    assert len(COMMANDS) >= 10


def _programs() -> list[str]:
    return [block.text for block in BLOCKS if block.language == "python"]


def test_python_example_runs(folder):
    _, example = _programs()
    assert "edgemm.stream" in example
    printed = run_python(example, folder)
    assert "Label(label=" in printed
    assert "TranscriptEvent" in printed


def test_the_clients_example_is_answered(folder):
    example, _ = _programs()
    with edgemm.load() as model, Endpoint(model, port=0) as endpoint:
        assert "amiable" in run_python(example.replace("http://127.0.0.1:8000/v1", endpoint.url), folder)


def test_the_two_commands_are_one_line_each():
    for name in ("run", "tests"):
        (block,) = (block for block in BLOCKS if block.mark == f"command: {name}")
        assert len(block.text.strip().splitlines()) == 1


def test_pictures_exist(repository):
    for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", DOCUMENT.read_text()):
        assert (repository / path).stat().st_size > 10_000
