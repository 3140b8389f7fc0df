"""`edgemm inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb

if TYPE_CHECKING:
    from edgemm.measure.inspection import Inspection

NOT_USABLE = 3
_MOST_PORTS = 3


def inspect(
    io: Io,
    path: Annotated[
        str, typer.Argument(help="A checkpoint's directory or hub id (owner/name), a bundle, or what optimum exported.")
    ],
) -> None:
    """A checkpoint, a bundle, or what optimum exported: family, components, bytes, checks. Verifies every hash."""
    from edgemm.measure.inspection import inspect as look

    found = look(path)
    io.document(asdict(found))
    if not io.json:
        io.show(_head(found), "", _components(found), *_checks(found))
        if found.kind == "bundle":
            io.show("\nevery file has the hash that the manifest gives")
    if not found.usable:
        for problem in found.problems:
            io.note(f"error: {problem}")
        raise typer.Exit(NOT_USABLE)


def _head(found: Inspection) -> Any:
    from edgemm.cli.tables import count, size, table

    head = table("", "", "")
    head.show_header = False
    head.add_row(found.kind if found.maker == "edgemm" else f"{found.maker}'s {found.kind}", found.path)
    head.add_row("family", found.model_type)
    head.add_row("tasks", ", ".join(found.tasks) or "unknown")
    head.add_row("parameters", count(found.parameters))
    head.add_row("bytes", size(found.bytes))
    word = "would take" if found.kind == "checkpoint" else "weights"
    sizes = (f"{p} {size(n)}" for p, n in found.bytes_per_precision.items())
    head.add_row(word, ", ".join(sizes))
    return head


def _components(found: Inspection) -> Any:
    from edgemm.cli.tables import count, size, table

    if found.kind == "checkpoint":
        return _would_be(found)
    if found.kind == "graphs":
        return _ports(found)
    columns = ("component", "family", "precision", ">parameters", ">bytes", ">max abs", ">cosine")
    shown = table("", *columns)
    for c in found.components:
        shown.add_row(
            c.name,
            c.model_type,
            c.precision,
            count(c.parameters),
            size(c.bytes),
            "" if c.parity_max_abs is None else f"{c.parity_max_abs:.1e}",
            "" if c.parity_cosine is None else f"{c.parity_cosine:.5f}",
        )
    return shown


def _would_be(found: Inspection) -> Any:
    """What export would make of a checkpoint, and its size by precision."""
    from edgemm.cli.tables import count, size, table

    precisions = list(found.bytes_per_precision)
    shown = table("", "component", "graphs", "family", "stored as", ">parameters", *(f">{p}" for p in precisions))
    for c in found.components:
        sizes = (size(c.bytes_per_precision[p]) if p in c.bytes_per_precision else "" for p in precisions)
        shown.add_row(c.name, ", ".join(c.graphs), c.model_type, c.precision, count(c.parameters), *sizes)
    return shown


def _ports(found: Inspection) -> Any:
    """The graphs of another exporter, and what they take and give."""
    from edgemm.cli.tables import count, size, table

    shown = table("", "graph", "precision", ">parameters", ">bytes", "inputs", "outputs")
    for c in found.components:
        shown.add_row(c.name, c.precision, count(c.parameters), size(c.bytes), _few(c.inputs), _few(c.outputs))
    return shown


def _few(ports: tuple[str, ...]) -> str:
    """One port with its dimensions, or the first names of many."""
    if len(ports) == 1:
        return ports[0]
    names = [port.split(" [")[0] for port in ports]
    return ", ".join(names[:_MOST_PORTS]) + (" …" if len(names) > _MOST_PORTS else "")


def _checks(found: Inspection) -> list[Any]:
    from edgemm.cli.tables import table

    if not found.checks:
        return []
    shown = table("", "task", "metric", ">original", ">bundle", ">examples")
    for check in found.checks:
        shown.add_row(
            f"{check['model']}: {check['task']}",
            str(check["metric"]),
            f"{check['before']:.2f}",
            f"{check['after']:.2f}",
            str(check["n"]),
        )
    return ["", shown]


verb = as_verb(inspect)
