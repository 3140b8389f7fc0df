"""`edgemm VERB …`: the entry point.

Typer and the verbs are imported inside, so that Ctrl-C is quiet from the start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

INTERRUPTED = 130
# Each is a module with a function `verb`; the order is that of `edgemm --help`.
VERBS = (
    "doctor",
    "devices",
    "inspect",
    "pretrain",
    "finetune",
    "distill",
    "label",
    "export",
    "build",
    "predict",
    "eval",
    "bench",
    "run",
    "record",
    "serve",
    "report",
)


def main() -> NoReturn:
    """Run the command line of this process and leave it with the verb's exit code."""
    try:
        _prepare(sys.argv[1:])
        code = invoke(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED or threading.active_count() > 1:
        # Daemon threads may still be inside native code, which the interpreter's own end can crash;
        # and CPython ends with SIGINT, not with `code`, where Ctrl-C met code made by exec().
        _flush_all()
        os._exit(code)
    sys.exit(code)


def _flush_all() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def invoke(argv: Sequence[str]) -> int:
    """Run one command line in this process; return its exit code. Never raises, never exits."""
    from edgemm.cli.failures import Settings, failed, flush

    settings = Settings(json="--json" in argv, debug="--debug" in argv)
    try:
        result = command().main(args=list(argv) or ["--help"], prog_name="edgemm", standalone_mode=False, obj=settings)
        flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        return failed(error, settings)


def command() -> Any:
    """The command with all its verbs."""
    import importlib

    import typer

    app = typer.Typer(
        name="edgemm",
        help="A fine-tuned multimodal model, from its training checkpoint to a robot.",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in VERBS:
        module = importlib.import_module(f"edgemm.cli.{name}")
        app.command(name)(module.verb)
    show = typer.Option(False, "--version", is_eager=True, callback=_version, help="Print the version and stop.")
    app.callback()(_top(show))
    return typer.main.get_command(app)


def _top(show: Any) -> Any:
    def top(version: bool = show) -> None:
        """A fine-tuned multimodal model, from its training checkpoint to a robot."""

    return top


def _version(wanted: bool) -> None:
    import typer

    import edgemm

    if wanted:
        print(f"edgemm {edgemm.__version__}")
        raise typer.Exit


def _prepare(argv: Sequence[str]) -> None:
    """What belongs to this process alone: signals, logs, warnings, the environment of libraries."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if "--debug" in argv:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    else:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
