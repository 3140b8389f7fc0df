"""How a failure leaves the process: a line on stderr, an exit code, an `error` with `--json`."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from dataclasses import dataclass

from edgemm.cli.app import INTERRUPTED
from edgemm.errors import EdgemmError, StorageError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Settings:
    """How failures of this command line are told. `reader_gone`: nobody reads stdout any more."""

    json: bool = False
    debug: bool = False
    reader_gone: bool = False


def failed(error: BaseException, settings: Settings) -> int:
    """Tell why the command line ended; return the exit code."""
    if isinstance(error, BrokenPipeError) or settings.reader_gone:
        _drop_stdout()
        return 0
    if settings.debug and not isinstance(error, (KeyboardInterrupt, SystemExit)):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    own = as_own(error)
    if settings.json:
        _write_json(own)
    if own.details:
        print(own.details, file=sys.stderr)
    print(f"error: {_one_line(str(own))}", file=sys.stderr)
    return own.exit_code


def as_own(error: BaseException) -> EdgemmError:
    """The error as one of edgemm's own."""
    if isinstance(error, EdgemmError):
        return error
    told = getattr(error, "format_message", None)
    if callable(told):  # Typer's own, whichever click it carries
        return UsageError(str(told()), hint=f"run: {_help_of(error)}")
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" for {error.filename}" if error.filename else ""
        return StorageError(f"no space left{where}", hint="free some space or choose another place")
    if isinstance(error, OSError) and error.filename and error.strerror:
        return EdgemmError(f"{error.filename}: {error.strerror}")
    what = str(error).strip()
    return EdgemmError(type(error).__name__ + (f": {what}" if what else ""), hint="run again with --debug")


def flush() -> None:
    """Give stdout what waits: an error of the pipe or the disk shows here, not at exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _help_of(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'edgemm'} --help"


def _write_json(error: EdgemmError) -> None:
    try:
        print(json.dumps({"error": error.as_dict()}, ensure_ascii=False), flush=True)
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush cannot fail."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return


def _one_line(text: str) -> str:
    return " ".join(text.split())
