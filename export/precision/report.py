"""The report that a gated export leaves in its bundle: `report/precision.json`, and the same as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgemm.export.precision.gated import Judged
from edgemm.export.precision.gates import Trial
from edgemm.export.precision.sensitivity import Noise

FOLDER = "report"
_ROW, _LEFT, _WIDTH, _RIGHT, _TOP = 16, 420, 400, 60, 56  # pixels
_DECADES = 4  # the axis goes from an error of 1e-4 to 1
_MOST = 300  # rows of the picture
_KEPT, _RESTORED = "#4878a8", "#d1605e"


def write_report(directory: Path, judged: Judged) -> None:
    """Write the report of an export that a gate judged; of another one, nothing."""
    if judged.settled is None and not judged.speed:
        return
    folder = directory / FOLDER
    folder.mkdir()
    (folder / "precision.json").write_text(json.dumps(document(judged), ensure_ascii=False, indent=1) + "\n")
    if judged.settled is not None and judged.settled.noises:
        (folder / "precision.svg").write_text(picture(judged.settled.noises, _restored(judged)))


def document(judged: Judged) -> dict[str, Any]:
    """What was tried, what was restored, and how loud every quantized operator is."""
    restored, settled = _restored(judged), judged.settled
    return {
        "schema_version": 1,
        "gate": judged.gate and judged.gate.model_dump(),
        "tried": [_trial(t) for t in settled.tried] if settled else [],
        "speed": [s.model_dump() for s in judged.speed],
        "operators": [
            {
                "component": n.component, "node": n.node, "operator": n.operator,
                "sqnr_db": n.sqnr_db, "output_db": n.output_db, "restored": n in restored,
            }
            for n in (settled.noises if settled else ())
        ],
    }  # fmt: skip


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "calib_method": trial.choice.method,
        "smoothed": trial.choice.smooth,
        "restored": len(trial.choice.restored),
        "metric": trial.metric,
        "before": trial.before,
        "after": trial.after,
        "drop": trial.drop,
    }


def _restored(judged: Judged) -> frozenset[Noise]:
    return frozenset(judged.choice.restored)


def picture(noises: Sequence[Noise], restored: frozenset[Noise]) -> str:
    """An SVG with a bar for every operator, on a logarithmic axis: the relative error that it alone, in int8, causes.

    In the graph's output where that was measured, else in its own.
    """
    shown = noises[:_MOST]
    height = _TOP + _ROW * len(shown) + 12
    width = _LEFT + _WIDTH + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="8" y="18" font-size="14">Error of the output with this operator alone in int8 (red: restored)</text>',
    ]
    for decade in range(_DECADES + 1):
        x = _LEFT + _WIDTH * decade // _DECADES
        label = 10.0 ** (decade - _DECADES)
        parts.append(f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{height - 8}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{_TOP - 12}" text-anchor="middle" fill="#555">{label:g}</text>')
    parts += [_bar(n, _TOP + _ROW * row, n in restored) for row, n in enumerate(shown)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(noise: Noise, y: int, restored: bool) -> str:
    ratio_db = noise.sqnr_db if noise.output_db is None else noise.output_db
    error = 10 ** (-ratio_db / 20)
    share = min(1.0, max(0.0, 1 - ratio_db / (20 * _DECADES)))
    name = f"{noise.component}: {noise.node}"
    short = name if len(name) <= 68 else f"…{name[-67:]}"
    colour = _RESTORED if restored else _KEPT
    return (
        f"<g><title>{escape(name)} ({escape(noise.operator)}): {ratio_db:.1f} dB</title>"
        f'<text x="{_LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(short)}</text>'
        f'<rect x="{_LEFT}" y="{y + 2}" width="{max(1.0, _WIDTH * share):.1f}" height="{_ROW - 5}" fill="{colour}"/>'
        f'<text x="{_LEFT + _WIDTH * share + 4:.1f}" y="{y + 11}" fill="#555">{error:.2g}</text></g>'
    )
