"""`edgemm run` on a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path

import pytest

from edgemm.cli.failures import Settings
from edgemm.cli.run import _screen
from edgemm.cli.shared import Io
from tests.cli.cli_runner import CLIP, COMMAND, ROOT
from tests.live.live_fakes import until
from tests.rig.terminal import Terminal

RUN = [*COMMAND, "run", "--camera", str(CLIP), "--runtime", "onnxruntime", "--no-show"]
WAIT_S = 60.0


def test_the_sample_clip(cache: Path) -> None:
    with Terminal([*RUN, "--duration", "5s"], columns=80, cwd=ROOT) as terminal:
        until(lambda: "an espresso" in terminal.text, WAIT_S)
        assert terminal.cursor_hidden
        assert terminal.ended() == 0
    text = terminal.text
    assert text.count("╭") == text.count("╰") == 1
    assert "made amiable himself.”" in terminal.raw.decode()
    assert re.search(r"camera +ended, \d+ captured, \d+ processed", text)
    assert re.search(r"latency +[▁-█]+  \d+ ms", text)
    assert text.count("ran for") == 1
    assert "hears    “" not in terminal.raw.decode()  # the lines of a pipe would stand there a second time
    assert not terminal.cursor_hidden


def test_ctrl_c_on_a_narrow_terminal_without_colours(cache: Path) -> None:
    with Terminal(RUN, columns=40, rows=120, cwd=ROOT, environment={"NO_COLOR": "1"}) as terminal:
        until(lambda: "in flight" in terminal.text, WAIT_S)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended(10.0) == 130
    assert not terminal.cursor_hidden
    assert "ran for" in terminal.text
    assert terminal.text.count("╭") == 1
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", terminal.raw)


def test_stdout_that_is_piped_stays_plain(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "events.jsonl"
    with (
        out.open("wb") as stdout,
        Terminal([*RUN, "--json", "--max-frames", "5"], columns=80, stdout=stdout) as terminal,
    ):
        assert terminal.ended() == 0
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert events[-1]["type"] == "summary"
    assert "5 processed" in terminal.text


class FakeTerminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdout", "stderr", "flags", "term", "sinks"),
    [
        (FakeTerminal, FakeTerminal, {}, "xterm", ["terminal"]),
        (FakeTerminal, FakeTerminal, {"json": True}, "xterm", ["json"]),
        (FakeTerminal, FakeTerminal, {"quiet": True}, "xterm", []),
        (FakeTerminal, FakeTerminal, {}, "dumb", ["text"]),
        (FakeTerminal, io.StringIO, {}, "xterm", ["text"]),
        (io.StringIO, FakeTerminal, {}, "xterm", ["text", "terminal"]),
        (io.StringIO, FakeTerminal, {"json": True}, "xterm", ["json", "terminal"]),
        (io.StringIO, FakeTerminal, {"json": True, "quiet": True}, "xterm", ["json"]),
        (io.StringIO, io.StringIO, {}, "xterm", ["text"]),
    ],
)
def test_what_is_written_where(stdout, stderr, flags, term, sinks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdout", stdout())
    monkeypatch.setattr("sys.stderr", stderr())
    told = Io(Settings(), **{"json": False, "quiet": False} | flags)
    assert [sink.name for sink in _screen(told, glance=True)] == sinks
    assert "terminal" not in [sink.name for sink in _screen(told, glance=False)]
