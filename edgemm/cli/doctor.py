"""`edgemm doctor`."""

from __future__ import annotations

from dataclasses import asdict

from edgemm.cli.shared import Io
from edgemm.cli.shared import verb as as_verb


def doctor(io: Io) -> None:
    """What this machine has, and the command that mends what it lacks."""
    from edgemm.measure.machine import examine

    found = examine()
    io.document(asdict(found))
    if io.json:
        return
    from edgemm.cli.tables import table

    about = table("", "", "")
    about.add_row("edgemm", f"{found.edgemm} on Python {found.python}, {found.platform}")
    about.add_row("cores, memory", f"{found.cores}, {found.memory_mb} MB")
    about.add_row("GPU", ", ".join(found.gpus) or "none found")
    about.add_row("window", found.gui.detail)
    about.add_row("export", found.export.detail)
    about.add_row("codecs", ", ".join(f"{k} {v}" for k, v in found.codecs.items()) or "no PyAV")
    for runtime in found.runtimes:
        where = runtime.missing or f"on {', '.join(runtime.devices)}"
        about.add_row(runtime.name, f"{runtime.version} {where}" if runtime.installed else "not installed")
    about.add_row("cameras", ", ".join(f"{c.spec} {c.name}" for c in found.cameras) or "none")
    microphones = ", ".join(f"{m.spec} {m.name}" for m in found.microphones)
    about.add_row("microphones", microphones or "none")
    about.show_header = False
    io.show(about)
    for problem in found.problems:
        io.show(f"\n{problem.what}: {problem.detail}")
        if problem.fix:
            io.show(f"  {problem.fix}")


verb = as_verb(doctor)
