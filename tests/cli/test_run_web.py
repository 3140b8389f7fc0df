"""`edgemm run --web`: what the command tells and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.cli_runner import Cli

pytest.importorskip("aiohttp", reason="the extra web is not installed")

RUN = (
    "run",
    "--camera",
    "test://?size=160x120",
    "--mic",
    "none",
    "--task",
    "classify",
    "--max-frames",
    "2",
    "--no-show",
)


def test_the_address_is_told_on_stderr(cli: Cli) -> None:
    ran = cli(*RUN, "--web", "127.0.0.1:0", "--json")
    assert ran.code == 0, ran.err
    assert any(re.fullmatch(r"the live page: http://127\.0\.0\.1:\d+/", line) for line in ran.errors)


def test_the_token_and_its_picture_are_told_even_when_quiet(cli: Cli) -> None:
    ran = cli(*RUN, "--web", "0.0.0.0:0", "--quiet")
    assert ran.code == 0, ran.err
    assert re.match(r"the live page: http://[\d.]+:\d+/\?token=[\w-]{20,}\n", ran.err)
    assert ran.err.count("█") > 100


def test_what_cannot_be_served_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert "--web takes HOST:PORT" in cli.refused(*RUN, "--web", "127.0.0.1:0/there", code=2)
    assert "needs the live page" in cli.refused("run", "--camera", "browser://", code=2)
    assert "without the live page" in cli.refused(*RUN, "--web-cert", tmp_path / "none.pem", code=2)
    assert "cannot be used for TLS" in cli.refused(
        *RUN, "--web", "127.0.0.1:0", "--web-cert", tmp_path / "none.pem", code=2
    )
