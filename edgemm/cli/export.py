"""`edgemm export`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemm.cli.gates import Asked, gates_of, show_gates
from edgemm.cli.shared import Io, library
from edgemm.cli.shared import verb as as_verb
from edgemm.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from edgemm.bundle.manifest import Precision
    from edgemm.export.pipeline import ExportReport


def export(
    io: Io,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint's directory or hub id (owner/name); in a clone, without it, the project's own.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the bundle goes; one file if it ends in .edgemm.")
    ] = Path("bundle"),
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights in half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and encoders.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="4-bit weights of decoders; the rest as with --int8.")] = False,
    calib: Annotated[
        list[Path] | None,
        typer.Option(
            "--calib",
            help="Pictures, sounds, videos, recordings, folders of them or data sets, for --int8, --int4. Repeatable.",
        ),
    ] = None,
    calib_method: Annotated[
        str | None,
        typer.Option("--calib-method", help="How ranges are chosen: mse (the default), max, percentile or entropy."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A data set as of eval: the metric on it must hold, or layers are restored."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="Points that the metric may lose on --data; 1.0 if left out.")
    ] = None,
    require_speedup: Annotated[
        float | None,
        typer.Option("--require-speedup", help="Times that every component must be faster than fp32, on this CPU."),
    ] = None,
    allow_slower: Annotated[
        bool, typer.Option("--allow-slower", help="Keep what --require-speedup finds too slow.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights that exist only as a pickle; no code of it is run.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
    list_families: Annotated[bool, typer.Option("--list-families", help="Print what export knows and stop.")] = False,
) -> None:
    """A checkpoint becomes a bundle: traced, compared with the original, quantized."""
    if list_families:
        _list_families(io)
        return
    precision = _precision(fp16=fp16, int8=int8, int4=int4)
    source, examples = _source(checkpoint, calib or [])
    if int8 and not examples:
        raise CheckpointError(
            "--int8 needs real examples for its activation ranges",
            hint="add --calib PATH: pictures, sounds or videos like those that it will meet",
        )
    pipeline: Any = library("pipeline")
    asked = Asked(data, max_drop, require_speedup, allow_slower, calib_method)
    gates, choice = gates_of(asked, precision)
    with io.progress() as tell, _place(output, overwrite) as target:
        report = pipeline.export(
            source,
            target,
            precision=precision,
            calibrate_on=examples,
            gates=gates,
            choice=choice,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            progress=tell,
        )
    if output.is_file():
        report = replace(report, bundle=output.absolute(), bytes=output.stat().st_size)
    _tell(io, report)


def _precision(**asked: bool) -> Precision:
    wanted: list[Any] = [name for name, is_asked in asked.items() if is_asked]
    if len(wanted) > 1:
        names = " and ".join(f"--{name}" for name in wanted)
        raise UsageError(f"{names} contradict each other", hint="give one of them")
    precision: Precision = wanted[0] if wanted else "fp32"
    return precision


def _place(output: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Where export writes: the directory itself, or one that becomes the `.edgemm` file."""
    from edgemm.bundle.archive import is_archive_name, packing

    return packing(output, overwrite=overwrite) if is_archive_name(output) else nullcontext(output)


def _source(checkpoint: str | None, calib: list[Path]) -> tuple[Path | str, list[Path]]:
    if checkpoint is not None:
        return checkpoint, calib
    own = samples()
    if own is None:
        raise CheckpointError(
            "no checkpoint was given, and this is not a clone of edgemm, which has one in samples/checkpoint",
            hint="run: edgemm export CHECKPOINT",
        )
    return own / "checkpoint", calib or [own / "clip" / "clip.mp4"]


def samples() -> Path | None:
    """The samples of the clone that edgemm runs from, or in which it is called; None elsewhere."""
    import edgemm.export

    clones = (Path(edgemm.export.__file__).resolve().parent.parent, Path.cwd())
    found = (clone / "samples" for clone in clones if (clone / "samples" / "checkpoint" / "config.json").is_file())
    return next(found, None)


def _list_families(io: Io) -> None:
    families = library("families")
    known = {name: facts.tasks for name, facts in families.known().items()}
    io.document({"families": [{"model_type": n, "tasks": list(t)} for n, t in known.items()]})
    width = max(map(len, known))
    for name, tasks in known.items():
        io.show(f"{name:<{width}}  {', '.join(tasks)}")


def _tell(io: Io, report: ExportReport) -> None:
    from edgemm.measure.reporting import export_document

    document = export_document(report)
    io.document(document)
    if io.json:
        return
    from edgemm.cli.tables import size, table

    parts = table("", "component", "precision", ">bytes", ">max abs", ">cosine")
    for c in document["components"]:
        compared = c["parity_cosine"] is not None
        numbers = (f"{c['parity_max_abs']:.1e}", f"{c['parity_cosine']:.5f}") if compared else ("", "")
        parts.add_row(c["name"], c["precision"], size(c["bytes"]), *numbers)
    gates = table("", "task", "metric", ">original", ">bundle", ">examples")
    for g in document["gates"]:
        figures = (f"{g['before']:.2f}", f"{g['after']:.2f}", str(g["n"]))
        gates.add_row(f"{g['model']}: {g['task']}", g["metric"], *figures)
    io.show(parts, "", *([gates, ""] if document["gates"] else []))
    show_gates(io, document)
    share = report.bytes / max(1, report.checkpoint_bytes_fp32)
    io.show(
        f"{report.bundle}: {size(report.bytes)}, {share:.2f} of the checkpoint's fp32, "
        f"in {report.seconds:.0f} s with {report.peak_rss_mb:.0f} MB of memory"
    )


verb = as_verb(export)
