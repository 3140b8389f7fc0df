"""`edgemm build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgemm.cli import args
from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import UsageError
from edgemm.runtimes.providers import OPENVINO_DEVICES

if TYPE_CHECKING:
    from pathlib import Path

    from edgemm.bundle.opening import Bundle
    from edgemm.measure.building import Build


def build(
    io: Io,
    bundle: args.BundleArgument = None,
    target: Annotated[
        str, typer.Option("--target", help="openvino, tensorrt-rtx, or tensorrt on the device itself.")
    ] = "",
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Architectures, such as sm86,sm89; without it the GPU that is here.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help=f"Of openvino: {', '.join(OPENVINO_DEVICES)}; without it the CPU.")
    ] = None,
    component: Annotated[str | None, typer.Option("--component", help="Only these components; without it all.")] = None,
) -> None:
    """Engines of a bundle's graphs, beside them."""
    only = args.names(component) or ()
    if target == "openvino":
        opened, made = _openvino(io, bundle, gpu, device, only)
    else:
        opened, made = _tensorrt(io, bundle, target, gpu, device, only)
    engines = [note.engine.model_dump(mode="json") for note in made.notes]
    io.document({"bundle": str(opened.path), "engines": engines, "refused": made.refused})
    if not io.json:
        _show(io, made)
    for name, reason in made.refused.items():
        io.note(f"not built: {name}: {reason}")


def _openvino(
    io: Io, bundle: Path | None, gpu: str | None, device: str | None, only: tuple[str, ...]
) -> tuple[Bundle, Build]:
    from edgemm.measure.building_openvino import build_openvino
    from edgemm.runtimes.base import SessionOptions

    if gpu is not None:
        raise UsageError("--gpu is for TensorRT", hint=f"choose with --device: {', '.join(OPENVINO_DEVICES)}")
    opened = args.open_or_default(io, bundle)
    with io.progress() as tell:
        return opened, build_openvino(opened, SessionOptions(device=device or "CPU"), only, tell)


def _tensorrt(
    io: Io, bundle: Path | None, target: str, gpu: str | None, device: str | None, only: tuple[str, ...]
) -> tuple[Bundle, Build]:
    from edgemm.measure.building import build as make
    from edgemm.runtimes.tensorrt_api import check_target

    gpus = args.names(gpu.lower() if gpu else None) or ()
    check_target(target, gpus)
    if device is not None:
        raise UsageError("--device is for openvino", hint="use --gpu with an architecture, such as sm86")
    if len(set(gpus)) < len(gpus):
        raise UsageError(f"--gpu names an architecture twice: {gpu}")
    opened = args.open_or_default(io, bundle)
    with io.progress() as tell:
        return opened, make(opened, target, gpus, only, tell)


def _show(io: Io, made: Build) -> None:
    from edgemm.cli.tables import size, table

    shown = table("", "component", "engine for", ">bytes", ">seconds", ">memory", ">cosine")
    for note in made.notes:
        e = note.engine
        place = ", ".join(e.gpu) or "this GPU"
        cosine = "" if note.cosine is None else f"{note.cosine:.5f}"
        memory = f"{note.peak_rss_mb:.0f} MB"
        shown.add_row(e.component, place, size(e.bytes), f"{e.seconds:.1f}", memory, cosine)
    io.show(shown, "")
    kept = f", {made.kept} of them there before" if made.kept else ""
    io.show(f"{made.folder}: {len(made.notes)} engines by {made.notes[0].engine.builder}{kept}")


verb = as_verb(build)
