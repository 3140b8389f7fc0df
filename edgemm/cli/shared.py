"""What every verb has: the shared options, its configuration file, and where its words go."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemm.cli.failures import Settings
from edgemm.errors import UsageError, missing_extra

PANEL = "Every verb"


class Io:
    """Where a verb's words go: results to stdout, everything else to stderr."""

    def __init__(self, settings: Settings, *, json: bool, quiet: bool) -> None:
        self.settings = settings
        self.json = json
        self.quiet = quiet

    def document(self, document: dict[str, Any]) -> None:
        """The verb's one JSON document, where `--json` asked for it."""
        if self.json:
            print(json.dumps(document, ensure_ascii=False, indent=1), flush=True)

    def show(self, *what: Any) -> None:
        """Text and rich tables for people, on stdout, unless `--json`."""
        if self.json:
            return
        from rich.console import Console

        width = None if sys.stdout.isatty() else 120
        console = Console(file=sys.stdout, width=width, highlight=False, markup=False)
        for item in what:
            console.print(item, soft_wrap=isinstance(item, str))

    def note(self, text: str) -> None:
        """A remark on stderr, unless `--quiet`."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float], None]]:
        """A function that takes what is being done and the share that is behind (0…1)."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield lambda what, share: None
            return
        from edgemm.cli.progress import bar

        with bar() as tell:
            yield tell


def library(name: str, *, extra: str = "export") -> Any:
    """A module of `edgemm.export`. Raises RuntimeUnavailable where its `extra` is not installed."""
    try:
        return importlib.import_module(f"edgemm.export.{name}")
    except ImportError as error:
        package = (error.name or "torch").split(".")[0]
        raise missing_extra(package, extra, error) from error


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, `fn(io, …its own options)`, the shared options and its `Io`."""
    own = inspect.signature(function, eval_str=True)

    def call(**values: Any) -> None:
        context: Any = values.pop("context")
        flags = {name: values.pop(name) for name in _SHARED}
        settings = context.obj if isinstance(context.obj, Settings) else Settings()
        settings.json, settings.debug = flags["json_"], flags["debug"]
        if flags["print_config"]:
            print(as_toml(context.command, values | flags), end="")
            return
        function(Io(settings, json=flags["json_"], quiet=flags["quiet"]), **values)

    named = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", named, annotation=typer.Context),
        *(p.replace(kind=named) for p in list(own.parameters.values())[1:]),
        *(inspect.Parameter(n, named, default=d, annotation=a) for n, (a, d) in _SHARED.items()),
    ]
    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, __name__
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def options_of(command: Any) -> dict[str, str]:
    """Key of the configuration file → name of the parameter, for one verb."""
    skip = {"config", "print_config", "help", "context"}
    return {_key(p.name): p.name for p in command.params if p.name not in skip}


def as_toml(command: Any, values: dict[str, Any]) -> str:
    """The effective options as a file that `--config` takes; what is not set is left out."""
    lines = []
    for key, name in options_of(command).items():
        value = values.get(name)
        if value is None or value == []:
            continue
        lines.append(f"{key} = {_toml(value)}\n")
    return "".join(lines)


def _key(name: str) -> str:
    return name.strip("_").replace("_", "-")


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _take_config(context: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the defaults of the options that are read after this one."""
    if path is None:
        return None
    known = options_of(context.command)
    found = {key.replace("_", "-"): value for key, value in _read_toml(path).items()}
    unknown = sorted(found.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"{path} sets {unknown[0]!r}, which {context.command_path} does not have",
            hint=f"it has: {', '.join(known)}",
        )
    context.default_map = {known[key]: value for key, value in found.items()}
    return path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="check --config") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="check --config") from error


_SHARED: dict[str, tuple[Any, Any]] = {
    "json_": (
        Annotated[bool, typer.Option("--json", help="JSON on stdout.", rich_help_panel=PANEL)],
        False,
    ),
    "quiet": (
        Annotated[bool, typer.Option("--quiet", help="No remarks.", rich_help_panel=PANEL)],
        False,
    ),
    "debug": (
        Annotated[bool, typer.Option("--debug", help="Tracebacks.", rich_help_panel=PANEL)],
        False,
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE.toml",
                help="Defaults of this verb's options.",
                is_eager=True,
                callback=_take_config,
                rich_help_panel=PANEL,
            ),
        ],
        None,
    ),
    "print_config": (
        Annotated[
            bool,
            typer.Option(
                "--print-config",
                help="Print the effective options as TOML and stop.",
                rich_help_panel=PANEL,
            ),
        ],
        False,
    ),
}
