"""A progress bar on stderr that appears when the work takes over a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

AFTER_S = 1.0


@contextmanager
def bar() -> Iterator[Callable[[str, float], None]]:
    """Give a function that takes what is being done and the share that is behind (0…1)."""
    progress = Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(file=sys.stderr),
        transient=True,
    )
    task = progress.add_task("", total=1.0)
    timer = threading.Timer(AFTER_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda what, share: progress.update(task, description=what, completed=share)
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
