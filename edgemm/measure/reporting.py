"""The JSON documents of export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgemm.bundle.manifest import Manifest

if TYPE_CHECKING:
    from edgemm.export.pipeline import ExportReport


def export_document(report: ExportReport) -> dict[str, Any]:
    """`export --json`: `gate` is what was measured on the user's data, else the task whose metric moved most.

    `gates` are all tasks against the original.
    """
    manifest = report.manifest
    gates = [
        {
            "model": c.model, "task": c.task, "metric": c.metric,
            "before": c.before, "after": c.after, "n": c.n,
        }
        for c in manifest.checks.tasks
    ]  # fmt: skip
    gate = manifest.checks.gate
    restored = [n.node for n in manifest.quantization.restored]
    worst = max(gates, key=lambda g: abs(g["after"] - g["before"]), default=None)  # type: ignore[operator]
    keys: tuple[str, ...] = ("metric", "before", "after")
    if gate is not None:
        worst = gate.model_dump()
        keys = ("metric", "before", "after", "max_drop", "n")
    return {
        "bundle": str(report.bundle),
        "seconds": round(report.seconds, 2),
        "bytes": report.bytes,
        "checkpoint_bytes_fp32": report.checkpoint_bytes_fp32,
        "peak_rss_mb": round(report.peak_rss_mb, 1),
        "components": [
            {"name": c.name, "precision": c.precision, "bytes": c.bytes} | _parity(manifest, c.name)
            for c in manifest.components
        ],
        "tokens_equal": manifest.checks.tokens_equal,
        "gate": {k: worst[k] if worst else None for k in keys} | {"restored": restored},
        "gates": gates,
        "speedup": {s.component: s.ratio for s in manifest.checks.speed},
    }


def _parity(manifest: Manifest, name: str) -> dict[str, float | None]:
    precision = manifest.component(name).precision
    own = [p for p in manifest.checks.parity if (p.component, p.precision) == (name, precision)]
    return {
        "parity_max_abs": own[-1].max_abs if own else None,
        "parity_cosine": own[-1].cosine if own else None,
    }
