"""The report of a run: `report/` in the checkpoint, with everything as JSON, the curves as a picture, and a page."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.page import document as document_of
from edgemm.page import plot, table

if TYPE_CHECKING:
    from edgemm.export.train.finetune import TrainReport

FOLDER = "report"
_LOSS = ("loss", "eval_loss")
_NOT_METRICS = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def write_report(directory: Path, report: TrainReport) -> None:
    """Write `report/report.json`, `curves.png` and `index.html`."""
    folder = directory / FOLDER
    folder.mkdir()
    picture = curves(report.history)
    (folder / "curves.png").write_bytes(picture)
    (folder / "report.json").write_text(json.dumps(document(report), ensure_ascii=False, indent=1) + "\n")
    (folder / "index.html").write_text(page(report, picture))


def document(report: TrainReport) -> dict[str, Any]:
    """Everything of a run but what was said to each row."""
    return {
        "checkpoint": report.checkpoint.name,
        "task": report.task,
        "command": command(),
        "metrics_before": dict(report.metrics_before),
        "metrics_after": dict(report.metrics_after),
        "metrics_teacher": dict(report.metrics_teacher) if report.metrics_teacher else None,
        "rows": dict(report.rows),
        "steps": report.steps,
        "seconds": round(report.seconds, 1),
        "examples_per_s": report.examples_per_s,
        "trained": report.trained,
        "parameters": report.parameters,
        "labels": asdict(report.labels) if report.labels else None,
        "history": list(report.history),
        "examples": [{"shown": s, "expected": e, "said": a} for s, e, a in report.examples],
    }


def command() -> str:
    """The command line that this process was started by, its program by name only."""
    return shlex.join(["edgemm" if i == 0 else word for i, word in enumerate(sys.argv)])


def curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Losses and metrics over the steps, as PNG."""
    from matplotlib.figure import Figure

    metrics = sorted({n for row in history for n in row if n.startswith("eval_") and n not in _NOT_METRICS})
    figure = Figure(figsize=(9, 3 * (1 + bool(metrics))), layout="constrained")
    axes = figure.subplots(1 + bool(metrics), 1, squeeze=False)[:, 0]
    _draw(axes[0], history, _LOSS, "loss")
    if metrics:
        _draw(axes[1], history, metrics, "metric on the validation rows")
    axes[-1].set_xlabel("step")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _draw(axis: Any, history: Sequence[Mapping[str, float]], names: Iterable[str], label: str) -> None:
    for name in names:
        points = [(row["step"], row[name]) for row in history if name in row]
        if points:
            shown = {"loss": "training", "eval_loss": "validation"}.get(name, name.removeprefix("eval_"))
            axis.plot(*zip(*points, strict=True), label=shown, marker="o" if len(points) < 30 else None, markersize=3)
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend()


def page(report: TrainReport, picture: bytes) -> str:
    """One page that needs nothing beside it."""
    sections = {
        "run": (
            f"<p><code>{escape(command())}</code></p>\n"
            f"<p>{report.steps} steps over {report.rows['train']} rows in {report.seconds:.0f} s, "
            f"{report.examples_per_s:.1f} examples a second; {report.trained:,} of {report.parameters:,} weights were "
            f"trained.</p>"
        ),
        "metrics": f"<h2>Before and after</h2>\n{_before_and_after(report)}",
        "labels": _labels(report),
        "curves": f"<h2>Curves</h2>\n{plot(picture, 'Loss and metrics over the steps')}",
        "examples": f"<h2>Examples of the test rows</h2>\n{table(('shown', 'expected', 'said'), report.examples)}",
    }
    return document_of(report.checkpoint.name, {name: html for name, html in sections.items() if html})


def _before_and_after(report: TrainReport) -> str:
    columns = {"before": report.metrics_before, "after": report.metrics_after}
    if report.metrics_teacher is not None:
        columns["teacher"] = report.metrics_teacher
    rows = [
        (name, *(f"{found.get(name, float('nan')):.2f}" for found in columns.values())) for name in report.metrics_after
    ]
    return table((f"on {report.rows['test']} test rows", *(f">{name}" for name in columns)), rows)


def _labels(report: TrainReport) -> str:
    if report.labels is None:
        return ""
    heads = ("label", ">precision %", ">recall %", ">F1 %", ">rows")
    return f"<h2>By label</h2>\n{table(heads, report.labels.rows)}"
