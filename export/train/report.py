"""The report of a run: `report/` in the checkpoint, with everything as JSON, the curves as a picture, and a page."""

from __future__ import annotations

import base64
import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemm.export.train.finetune import TrainReport

FOLDER = "report"
_LOSS = ("loss", "eval_loss")
_NOT_METRICS = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
code { background: #8882; padding: .1rem .3rem; border-radius: 4px; overflow-wrap: anywhere; }
.wrong { color: #c0392b; }
"""


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
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(report.checkpoint.name)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(report.checkpoint.name)}</h1>
<p><code>{escape(command())}</code></p>
<p>{report.steps} steps over {report.rows["train"]} rows in {report.seconds:.0f} s, {report.examples_per_s:.1f} examples
a second; {report.trained:,} of {report.parameters:,} weights were trained.</p>
<h2>Before and after</h2>
{_before_and_after(report)}
{_labels(report)}
<h2>Curves</h2>
<img alt="Loss and metrics over the steps" src="data:image/png;base64,{image}">
<h2>Examples of the test rows</h2>
{_table(("shown", "expected", "said"), report.examples)}
</body></html>
"""


def _before_and_after(report: TrainReport) -> str:
    columns = {"before": report.metrics_before, "after": report.metrics_after}
    if report.metrics_teacher is not None:
        columns["teacher"] = report.metrics_teacher
    rows = [
        (name, *(f"{found.get(name, float('nan')):.2f}" for found in columns.values())) for name in report.metrics_after
    ]
    return _table((f"on {report.rows['test']} test rows", *columns), rows)


def _labels(report: TrainReport) -> str:
    if report.labels is None:
        return ""
    scores = {**report.labels.labels, "plain mean": report.labels.macro, "weighted mean": report.labels.weighted}
    rows = [(n, f"{s.precision:.1f}", f"{s.recall:.1f}", f"{s.f1:.1f}", str(s.support)) for n, s in scores.items()]
    return f"<h2>By label</h2>\n{_table(('label', 'precision %', 'recall %', 'F1 %', 'rows'), rows)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
