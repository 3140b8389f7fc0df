"""Completion in bash: the script that is shown and installed, and what it answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.cli.app import VERBS
from tests.cli.cli_runner import own_process

TOOL = Path(sys.executable).with_name("edgemm")


def _completed(words: str) -> set[str]:
    """What bash would offer after these words, by the script that edgemm shows."""
    script = f"""
        source <({TOOL} --show-completion bash)
        COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1}
        _edgemm_completion {TOOL}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("edgemm re", {"record", "report"}),
        ("edgemm run --cam", {"--camera"}),
        ("edgemm export --int", {"--int8", "--int4"}),
        ("edgemm --show", {"--show-completion"}),
    ],
)
def test_verbs_and_options_are_completed(words: str, wanted: set[str]) -> None:
    assert _completed(words) == wanted


def test_every_verb_is_offered() -> None:
    words = "edgemm ''"
    assert _completed(words) >= set(VERBS)


def test_it_is_installed_where_bash_reads_it(tmp_path: Path) -> None:
    ran = own_process("--install-completion", "bash", env={"HOME": str(tmp_path)})
    assert ran.code == 0, ran.err
    assert "edgemm" in (tmp_path / ".bashrc").read_text()
