"""Answers said aloud by a text-to-speech command of the system."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from urllib.parse import parse_qsl

from edgemm.errors import EdgemmError, RuntimeUnavailable, UsageError
from edgemm.live.events import AnswerEvent, InterruptedEvent
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits

LONGEST_S = 60.0
KNOWN: tuple[tuple[str, ...], ...] = (
    ("espeak-ng", "{text}"),
    ("flite", "-t", "{text}"),
    ("say", "{text}"),
    ("spd-say", "--wait", "{text}"),
)

_TEXT = "{text}"
_TICK_S = 0.02


class SpeakSink:
    """`speak://` takes the first of `KNOWN` that is installed, `speak://COMMAND ARGUMENTS` another command; `{text}` in
    it becomes the text, which else is the last argument. No shell is involved.

    One answer is said at a time and at most one waits: the newest. `interrupted` cuts off what is said and forgets what
    waits; so does a stop of the run, while the end of the sources lets it finish. A command that takes `LONGEST_S` is
    killed. While it speaks the microphone is not listened to, unless the URL ends in `?mute=no`. Essential until it is
    open: a command that is not there ends the run (RuntimeUnavailable). Raises UsageError for other options.
    """

    name = "speak://"
    limits = SinkLimits(events=256)

    def __init__(self, url: str) -> None:
        command, _, query = url.partition("://")[2].partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        mute = options.pop("mute", "yes")
        if options or mute not in ("yes", "no"):
            raise UsageError(f"{url} has an option that speak:// has not", hint="it takes ?mute=no")
        try:
            self._command = tuple(shlex.split(command))
        except ValueError as error:
            raise UsageError(f"{url} is no command: {error}", hint="write speak://COMMAND ARGUMENTS") from error
        self.essential = True
        self._mute = mute == "yes"
        self._changed = threading.Condition()
        self._waiting: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def open(self, context: SinkContext) -> None:
        """Finds the command."""
        self._context = context
        self._command = _found(self._command)
        self._thread = threading.Thread(target=self._run, name="edgemm-speak", daemon=True)
        self._thread.start()
        self.essential = False

    def handle(self, item: Item) -> None:
        """Says an answer; hushes when one is interrupted. Never waits."""
        if isinstance(item, AnswerEvent) and item.text.strip():
            with self._changed:
                self._waiting = item.text.strip()
                self._changed.notify_all()
        elif isinstance(item, InterruptedEvent):
            self._hush()

    def close(self) -> None:
        """Lets the last answers be said, unless the run is stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is None:
            return
        while self._thread.is_alive() and not self._context.stopping():
            self._thread.join(_TICK_S)
        self._hush()
        self._thread.join(1.0)

    def _hush(self) -> None:
        with self._changed:
            self._waiting = None
            if self._process is not None:
                _kill(self._process)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                if self._waiting is None:
                    return
            self._context.talking(True, self._mute)
            try:
                self._say()
            except OSError as error:
                self._context.report(EdgemmError(f"{self._command[0]} cannot be run: {error.strerror or error}"))
            finally:
                self._context.talking(False, self._mute)

    def _say(self) -> None:
        """Says what waits, if it still does: a hush may have come in between."""
        with tempfile.TemporaryFile() as errors:
            with self._changed:
                text, self._waiting = self._waiting, None
                if text is None:
                    return
                self._process = process = subprocess.Popen(
                    _arguments(self._command, text),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                )
            try:
                code = process.wait(LONGEST_S)
            except subprocess.TimeoutExpired:
                _kill(process)
                code = process.wait()
                self._context.report(EdgemmError(f"{self._command[0]} spoke for {LONGEST_S:.0f} s and was ended"))
            with self._changed:
                self._process = None
            if code > 0:
                errors.seek(0)
                said = errors.read(2000).decode(errors="replace").strip().splitlines()
                reason = said[-1] if said else f"exit code {code}"
                self._context.report(EdgemmError(f"{self._command[0]} failed: {reason}", hint="try it in a terminal"))


def _found(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command with its program's path. Raises RuntimeUnavailable where there is none."""
    for known in (command,) if command else KNOWN:
        program = shutil.which(known[0])
        if program is not None:
            return (program, *known[1:])
    if command:
        raise RuntimeUnavailable(f"the command {command[0]!r} of speak:// is not installed", hint="check its name")
    names = ", ".join(known[0] for known in KNOWN)
    raise RuntimeUnavailable(f"nothing here can speak: none of {names}", hint="run: apt-get install espeak-ng")


def _arguments(command: tuple[str, ...], text: str) -> list[str]:
    # A text that begins with a dash is no option.
    text = f" {text}" if text.startswith("-") else text
    if not any(_TEXT in part for part in command[1:]):
        return [*command, text]
    return [command[0], *(part.replace(_TEXT, text) for part in command[1:])]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the command and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
