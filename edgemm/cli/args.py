"""Options that several verbs share, and the small formats that they take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemm.cli.shared import Io
from edgemm.errors import BundleError, UsageError
from edgemm.runtimes.providers import ALL_DEVICES

if TYPE_CHECKING:
    from edgemm.bundle.opening import Bundle
    from edgemm.model import Model

BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="Without it ./bundle if there is one, else the embedded default."),
]
RuntimeOption = Annotated[str, typer.Option("--runtime", help="auto, or one that doctor lists.", metavar="NAME")]
DeviceOption = Annotated[str, typer.Option("--device", help=f"The runtime's device: {', '.join(ALL_DEVICES)}.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=0, help="0 lets the runtime decide.")]
ExactOption = Annotated[
    bool | None,
    typer.Option("--exact/--fast", help="Compute in full precision or not; else as the weights are stored."),
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="The page of `edgemm report` to write this into; made if missing.")
]

_HERE = Path("bundle")
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|min|h)?\s*")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, None: 1.0}


def seconds(text: str | None, option: str) -> float | None:
    """ "0.5s", "500ms", "2m" or "3" (seconds) → seconds. Raises UsageError."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"{option} takes a duration, not {text!r}", hint="such as 500ms, 10s, 2m")
    return float(found[1]) * _UNIT_S[found[2]]


def size_px(text: str | None) -> tuple[int, int] | None:
    """ "1280x720" → (1280, 720). Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UsageError(f"--size takes WIDTHxHEIGHT, not {text!r}", hint="such as 1280x720")
    return int(found[1]), int(found[2])


def every(text: str | None) -> tuple[float, bool]:
    """ "0.5s" → (0.5, False), "change" → (0.0, True), "change:0.5s" → (0.5, True). Raises UsageError."""
    on_change, colon, rest = (text or "").partition(":")
    if on_change.strip() != "change":
        return seconds(text, "--every") or 0.0, False
    return (seconds(rest, "--every") or 0.0) if colon else 0.0, True


def window(text: str) -> tuple[int, float]:
    """ "8@2fps" → (8, 2.0). Raises UsageError."""
    found = re.fullmatch(r"\s*(\d{1,4})\s*@\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:fps)?\s*", text)
    if found is None:
        raise UsageError(f"--window takes FRAMES@FPS, not {text!r}", hint="such as 8@2fps")
    return int(found[1]), float(found[2])


def names(text: str | None) -> tuple[str, ...] | None:
    """ "classify,transcribe" → its parts; None where nothing was given."""
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_bundle(path: Path) -> bool:
    """Whether this is meant as a bundle: a directory with a manifest, or a `.edgemm` file."""
    from edgemm.bundle.archive import is_archive_name

    return is_archive_name(path) or (path / "edgemm.json").is_file()


def open_or_default(io: Io, bundle: Path | None) -> Bundle:
    """The bundle; where none was given `./bundle`, else the embedded default one: which is said."""
    from edgemm.bundle.opening import open_bundle
    from edgemm.model import default_bundle_path

    if bundle is not None:
        return open_bundle(bundle)
    if is_bundle(_HERE):
        io.note(f"using ./{_HERE}")
        return open_bundle(_HERE)
    path = default_bundle_path()
    if not Path(path).is_dir():
        raise BundleError("this edgemm carries no default bundle", hint="run: edgemm export --int8 -o bundle")
    io.note("using the embedded default bundle")
    return open_bundle(path)


def load(
    io: Io,
    bundle: Path | None,
    *,
    runtime: str = "auto",
    device: str = "CPU",
    threads: int = 0,
    exact: bool | None = None,
) -> Model:
    """The model of a bundle; see `open_or_default`."""
    from edgemm.model import Model
    from edgemm.runtimes.base import SessionOptions

    opened = open_or_default(io, bundle)
    options = SessionOptions(device=device, threads=threads, exact=exact)
    return Model(opened, runtime=runtime, options=options, remark=io.note)
