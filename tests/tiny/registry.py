"""The tiny checkpoints of every family: one module a group, each with a dict `TINY`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tiny:
    """How a tiny checkpoint is built, and the graphs that its bundle must have, in the manifest's order."""

    build: Callable[[Path], Path]
    components: tuple[str, ...]


def all_tiny() -> dict[str, Tiny]:
    """Every tiny checkpoint by name."""
    found: dict[str, Tiny] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found |= getattr(importlib.import_module(f"tests.tiny.{path.stem}"), "TINY", {})
    return found
