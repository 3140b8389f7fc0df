"""What the studies of training share: runs whose results are kept, means with their spread, a small plot."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgemm.bundle.files import write_atomically

SEEDS = (0, 1, 2)
Figures = Mapping[str, float]


def kept(work: Path, name: str, run: Callable[[], Figures]) -> Figures:
    """What `run` found, made once: it stands in `work`/results/`name`.json from then on."""
    place = work / "results" / f"{name}.json"
    if place.is_file():
        known: dict[str, float] = json.loads(place.read_text())
        return known
    start_s = time.process_time()
    found = dict(run()) | {"cpu_s": time.process_time() - start_s}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(found, indent=1).encode())
    print(name, {key: round(value, 2) for key, value in found.items()}, flush=True)
    return found


def deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def told(values: Sequence[float]) -> str:
    """Mean ± deviation (each value)."""
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {deviation(values):.1f} ({each})"


def plot(rows: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Every value of each row as a point, its mean as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.6)
        axes.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color="C1")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
