"""The report of a bundle: one HTML page, to which `report`, `bench` and `eval` each add what they found."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from edgemm.bundle.files import write_atomically
from edgemm.bundle.manifest import MANIFEST_NAME
from edgemm.bundle.opening import Bundle
from edgemm.errors import InputError
from edgemm.measure.bench import Bench
from edgemm.measure.evaluate import Evaluation
from edgemm.measure.predict import Prediction
from edgemm.page import Cell, bar, document, plot, sections_of, subject_of, table
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video

THUMB_PX = 320
SHOWN = 12
_PLOT = Path("report/precision.svg")


def sections_at(page: Path, bundle: Bundle) -> dict[str, str]:
    """What the report of `bundle` at `page` has, nothing where there is none. Raises InputError where the file is no
    such page, or one of another bundle: to be asked before anything is measured for it.
    """
    if not page.is_file():
        return {}
    text = page.read_text("utf-8", errors="replace")
    if subject_of(text) != _subject(bundle):
        raise InputError(f"{page} is no report of {bundle.name} as it is now", hint="give another file")
    return sections_of(text)


def add(page: Path, bundle: Bundle, sections: Mapping[str, str]) -> None:
    """Write sections into the report of `bundle` at `page`, which is made where there is none; what it has of other
    names stays, so that one page has figures of several runs. Raises as `sections_at`, and StorageError.
    """
    whole = {**about(bundle), **sections_at(page, bundle), **sections}
    write_atomically(page, document(bundle.name, whole, subject=_subject(bundle)).encode())


def _subject(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest()


def about(bundle: Bundle) -> dict[str, str]:
    """What a bundle is and how near it is to its original: all of it stands in the bundle."""
    manifest = bundle.manifest
    source = manifest.source
    share = f", {bundle.bytes / source.bytes_fp32:.2f} of the checkpoint in fp32" if source.bytes_fp32 else ""
    return {
        "about": (
            f"<p class=note>edgemm {escape(manifest.edgemm_version)} · {bundle.bytes / 1e6:.1f} MB{share} · "
            f"{escape(', '.join(bundle.tasks))}</p>"
        ),
        "size": f"<h2>Size</h2>\n{_sizes(bundle)}",
        "parity": "\n".join(["<h2>How near it is to the original</h2>", *_parity(bundle), *_restored(bundle)]),
        **({"speed-of-export": _speed_of_export(bundle)} if manifest.checks.speed else {}),
    }


def _sizes(bundle: Bundle) -> str:
    components = bundle.manifest.components
    most = max(c.bytes for c in components)
    rows = [
        (c.name, c.precision, f"{c.parameters:,}", f"{c.bytes / 1e6:.2f} MB", bar(c.bytes / most)) for c in components
    ]
    return table(("component", "precision", ">parameters", ">size", ""), rows)


def _parity(bundle: Bundle) -> Iterable[str]:
    checks = bundle.manifest.checks
    worst: dict[str, list[Cell]] = {}
    for check in checks.parity:
        figures = [f"{check.max_abs:.1e}", f"{check.cosine:.6f}"]
        before = worst.setdefault(check.component, ["", "", "", ""])
        before[slice(0, 2) if check.precision == "fp32" else slice(2, 4)] = figures
    if worst:
        yield "<p>Every component against the original module in fp32, the worst of several shapes.</p>"
        heads = ("component", ">max abs, fp32 graph", ">cosine", ">max abs, as stored", ">cosine")
        yield table(heads, [(name, *cells) for name, cells in worst.items()])
    else:
        yield "<p>Nothing was compared: the graphs came as they are.</p>"
    if checks.tasks:
        yield "<p>Whole tasks, of the fp32 graphs and as stored, on the same examples.</p>"
        rows = [(c.model, c.task, c.metric, f"{c.before:.4g}", f"{c.after:.4g}", str(c.n)) for c in checks.tasks]
        yield table(("model", "task", "metric", ">original", ">bundle", ">examples"), rows)
    gate = checks.gate
    if gate is not None:
        yield (
            f"<p>On the user's {gate.n} examples {escape(gate.metric)} went from {gate.before:.2f} to {gate.after:.2f} "
            f"(at most {gate.max_drop:g} points of loss were allowed).</p>"
        )


def _restored(bundle: Bundle) -> Iterable[str]:
    picture = bundle.path / _PLOT
    restored = bundle.manifest.quantization.restored
    if picture.is_file():
        yield plot(picture.read_bytes(), "The error of each layer in low precision")
    if restored:
        yield f"<p>{len(restored)} operators were restored, since low precision disturbed them:</p>"
        yield table(("component", "operator", "why"), [(n.component, n.node, n.reason) for n in restored])


def _speed_of_export(bundle: Bundle) -> str:
    rows = [
        (s.component, s.runtime, f"{s.before_ms:.2f}", f"{s.after_ms:.2f}", f"{s.before_ms / s.after_ms:.2f}")
        for s in bundle.manifest.checks.speed
    ]
    heads = ("component", "runtime", ">fp32, ms", ">bundle, ms", ">times faster")
    return f"<h2>Speed where it was exported</h2>\n{table(heads, rows)}"


def speed(found: Bench, than: str = "") -> str:
    """What `bench` measured, compared with the bundle `than` where there was one."""
    times = [(name, runtime, t) for name, of in found.components.items() for runtime, t in of.items()]
    most = max((float(t["median_ms"]) for *_, t in times if "median_ms" in t), default=1.0)
    rows: list[tuple[Cell, ...]] = []
    for name, runtime, t in times:
        figures: tuple[Cell, ...] = ("cannot run", "", "", "")
        if "error" not in t:
            ratio = (found.ratio or {}).get(name, {}).get(runtime)
            compared = f"{ratio:.2f}" if ratio else ""
            figures = (f"{t['median_ms']:.2f}", f"{t['p99_ms']:.2f}", compared, bar(t["median_ms"] / most))
        rows.append((name, runtime, *figures))
    tasks = [(task, ", ".join(f"{_words(k)} {v:g}" for k, v in f.items())) for task, f in found.tasks.items()]
    faster = f">times faster than {than}" if than else ">"
    return "\n".join((
        "<h2>Speed here</h2>",
        table(("component", "runtime", ">median, ms", ">p99, ms", faster, ""), rows),
        table(("task", "figures"), tasks),
        f"<p class=note>{found.rounds} rounds on {escape(found.input)}; peak memory {found.peak_rss_mb:.0f} MB.</p>",
    ))  # fmt: skip


def accuracy(found: Evaluation, data: str) -> str:
    """What `eval` found on a data set, with the examples that were said worst."""
    other, drop = found.against or {}, found.drop or {}
    heads = ("metric", ">%", *((">other bundle, %", ">worse, points") if other else ()))
    rows = [
        (name, f"{value:.2f}", *((f"{other[name]:.2f}", f"{drop[name]:+.2f}") if other else ()))
        for name, value in found.metrics.items()
    ]
    parts = [f"<h2>On {escape(data)}</h2>", table(heads, rows), f"<p class=note>{found.n} examples.</p>"]
    if found.report is not None:
        parts.append(table(("label", ">precision %", ">recall %", ">F1 %", ">examples"), found.report.rows))
    wrong = [e for e in found.examples if e.said.strip() not in e.references][:SHOWN]
    if wrong:
        parts.append("<p>Some that were said otherwise than expected:</p>")
        shown = [(Path(e.file).name, e.question or "", " / ".join(e.references), e.said) for e in wrong]
        parts.append(table(("file", "question", "expected", "said"), shown))
    return "\n".join(parts)


def examples(found: Sequence[Prediction]) -> str:
    """Files with what the bundle says of them."""
    return "\n".join(["<h2>Examples</h2>", *_figures(found)])


def _figures(found: Sequence[Prediction]) -> Iterable[str]:
    for example in found:
        said = "".join(
            f"<tr><th>{escape(what)}</th><td>{escape(text)}</td></tr>" for what, text in _said(example).items()
        )
        name = escape(Path(example.file).name)
        yield f"<figure>{_thumb(example)}<figcaption><b>{name}</b><table>{said}</table></figcaption></figure>"


def _said(example: Prediction) -> Mapping[str, str]:
    found: dict[str, str] = {}
    if example.labels and example.labels[0].labels:
        found["labels"] = ", ".join(f"{i.label} {i.score:.2f}" for i in example.labels[0].labels[:3])
    if example.detections:
        found["objects"] = ", ".join(f"{o.label} {o.score:.2f}" for o in example.detections[0].objects) or "none"
    for name in ("caption", "description", "answer", "transcript"):
        value: Any = getattr(example, name)
        if value is not None:
            found[name] = value.text.strip()
    return found


def _thumb(example: Prediction) -> str:
    """The picture, or a video's first, as a small JPEG with the boxes that were found."""
    import cv2

    if example.kind == "audio":
        return ""
    image = to_rgb(example.file) if example.kind == "image" else next(iter_video(example.file)).image
    scale = THUMB_PX / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for found in example.detections[0].objects if example.detections else ():
        x0, y0, x1, y1 = (round(v * scale) for v in found.box_px)
        cv2.rectangle(small, (x0, y0), (x1, y1), (45, 212, 191), 2)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def _words(figure: str) -> str:
    return figure.replace("_", " ")
