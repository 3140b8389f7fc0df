"""How tables look, and numbers in them."""

from __future__ import annotations

from typing import Any


def table(title: str, *columns: str) -> Any:
    """A rich table without lines; a column whose name begins with ">" is right-aligned."""
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        made.add_column(
            name.lstrip(">"),
            justify="right" if name.startswith(">") else "left",
            header_style="dim",
            overflow="fold",
        )
    return made


def size(n: float) -> str:
    """Bytes for people: "40.1 MB"."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} GB"


def count(n: int) -> str:
    """A number of parameters for people: "27.1 M"."""
    return f"{n / 1e6:.1f} M" if n >= 100_000 else str(n)
