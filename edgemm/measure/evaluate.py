"""The metric of a bundle's task on a data set: word error rate, or right first labels,
or mAP of boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.files import write_atomically
from edgemm.errors import EdgemmError, InputError
from edgemm.measure.data import Row, read_rows
from edgemm.measure.detection import Box, as_text, from_text, mean_average_precision
from edgemm.measure.recommendation import as_text as liking_text
from edgemm.measure.recommendation import ranking_metrics
from edgemm.processing.audio import load_audio
from edgemm.tasks.metrics import top1, wer

if TYPE_CHECKING:
    from edgemm.model import Model

Progress = Callable[[str, float], None]
_ANY_SCORE = 0.001  # mAP weighs every object by its rank, the unlikely ones too
# Metric → +1 where more is worse.
_WORSE = {"wer": 1.0, "top1": -1.0, "map": -1.0, "map50": -1.0, "recall@10": -1.0, "ndcg@10": -1.0}


@dataclass(frozen=True)
class Example:
    """What was expected of one row and what was said, by bundle ("this" and, compared, "other")."""

    file: str
    task: str
    expected: str
    said: str
    other: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """`metrics` in percent; `drop` is how much worse than `against` they are, in points."""

    metrics: dict[str, float]
    n: int
    examples: tuple[Example, ...]
    against: dict[str, float] | None = None
    drop: dict[str, float] | None = None


def evaluate(
    model: Model,
    data: Path,
    *,
    other: Model | None = None,
    limit: int | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Evaluation:
    """Run `model` (and `other`) over the rows of `data`.

    Rows with `text` give `wer`, rows with `label` give `top1`, rows with `objects` give `map` and
    `map50`, rows with `user`, `item` and `score` give `recall@10` and `ndcg@10`. Raises InputError that
    names the row for one that no task fits or whose file is unusable, TaskUnavailable where the bundle
    cannot do what the rows ask.
    """
    rows = read_rows(data, limit=limit)
    tasks = [_task(row) for row in rows]
    examples = []
    for number, (row, task) in enumerate(zip(rows, tasks, strict=True)):
        progress(row.path.name, number / len(rows))
        expected = _expected(model, row, task)
        said = [_say(m, row, task) for m in (model, other) if m is not None]
        examples.append(Example(str(row.path), task, expected, *said))
    metrics = _metrics(examples, [e.said for e in examples])
    if other is None:
        return Evaluation(metrics, len(rows), tuple(examples))
    against = _metrics(examples, [e.other or "" for e in examples])
    return Evaluation(metrics, len(rows), tuple(examples), against, drops(against, metrics))


def drops(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How much worse every metric of `after` is, in points."""
    return {n: round(_WORSE[n] * (after[n] - before[n]), 4) + 0.0 for n in after}


def check_rows(data: Path, *, limit: int | None = None) -> int:
    """How many examples `data` has. Raises as `evaluate` does for rows that no task fits."""
    return len([_task(row) for row in read_rows(data, limit=limit)])


def write_examples(path: Path, evaluation: Evaluation) -> None:
    """One JSON line an example. Raises StorageError."""
    lines = []
    for e in evaluation.examples:
        line = {key: value for key, value in asdict(e).items() if value is not None}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _task(row: Row) -> str:
    if row.objects is not None:
        return "detect"
    if row.liking is not None:
        return "recommend"
    if row.label is not None:
        return "classify"
    if row.text is not None:
        return "transcribe"
    raise InputError(f"{row.where} has neither a text nor a label nor objects", hint="add one of them")


def _expected(model: Model, row: Row, task: str) -> str:
    if task == "transcribe":
        return row.text or ""
    if task == "detect":
        boxes = [Box(label_of(name, model, where=row.where, task="detect"), box) for name, box in row.objects or ()]
        return as_text(boxes)
    if row.liking is not None:
        return liking_text(row.liking)
    return label_of(row.label or "", model, where=row.where)


def label_of(text: str, model: Model, *, where: str = "", task: str = "classify") -> str:
    """The label of `model` for a task that `text` means: case, `_` and further names after a comma don't matter.

    Raises InputError with the nearest labels; it begins with `where`.
    """
    names: Sequence[str] = model.task(task).names
    for name in names:
        if _plain(text) in {_plain(name), *(_plain(part) for part in name.split(","))}:
            return name
    import difflib

    near = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    raise InputError(
        f"{where}{': ' if where else ''}{text!r} is none of the {len(names)} labels of {model.name}",
        hint=f"the nearest are {', '.join(near)}" if near else "use the labels of the checkpoint",
    )


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _say(model: Model, row: Row, task: str) -> str:
    model.bundle.model_for(task)
    try:
        if task == "classify":
            return model.classify(row.path, top=1).labels[0].label
        if row.liking is not None:
            return f"{model.recommend(row.liking.user, [row.liking.item]).items[0].score:.6f}"
        if task == "detect":
            found = model.detect(row.path, score_min=_ANY_SCORE).objects
            return as_text([Box(x.label, x.box_px, x.score) for x in found])
        samples, rate_hz = load_audio(row.path)
        return model.transcribe(samples, sample_rate_hz=rate_hz).text
    except EdgemmError as error:
        error.message = f"{row.where}: {error.message}"
        raise


def _metrics(examples: Sequence[Example], said: Sequence[str]) -> dict[str, float]:
    metrics = {}
    for task, name, measure in (("transcribe", "wer", wer), ("classify", "top1", top1)):
        pairs = [(e.expected, s) for e, s in zip(examples, said, strict=True) if e.task == task]
        if pairs:
            metrics[name] = round(measure([p[0] for p in pairs], [p[1] for p in pairs]), 4)
    pairs = [(e.expected, s) for e, s in zip(examples, said, strict=True) if e.task == "recommend"]
    if pairs:
        ranking = ranking_metrics([p[0] for p in pairs], [p[1] for p in pairs])
        metrics |= {name: round(value, 4) for name, value in ranking.items()}
    boxes = [(from_text(e.expected), from_text(s)) for e, s in zip(examples, said, strict=True) if e.task == "detect"]
    if boxes:
        found = mean_average_precision([b[0] for b in boxes], [b[1] for b in boxes])
        metrics |= {name: round(value, 4) for name, value in found.items()}
    return metrics
