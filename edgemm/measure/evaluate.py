"""The metrics of a bundle's tasks on a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgemm.bundle.files import write_atomically
from edgemm.measure.asking import expected_of, said_to, task_of
from edgemm.tasks.class_report import ClassReport, class_report
from edgemm.tasks.rows import read_rows
from edgemm.tasks.scoring import drops, measured

if TYPE_CHECKING:
    from edgemm.model import Model

Progress = Callable[[str, float], None]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Example:
    """What was expected of one row and what was said, by bundle ("this" and, compared, "other").

    Captions and answers have all their references in `expected`. `scores` are what "this" reached here, in percent,
    in the metrics that an example has by itself.
    """

    file: str
    task: str
    expected: str | tuple[str, ...]
    said: str
    other: str | None = None
    question: str | None = None
    scores: Metrics | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """All that would have been right."""
        return (self.expected,) if isinstance(self.expected, str) else self.expected


@dataclass(frozen=True)
class Evaluation:
    """`metrics` in percent; `drop` is how much worse than `against` they are, in points.

    `report` has every label's precision and recall, where there are labels.
    """

    metrics: Metrics
    n: int
    examples: tuple[Example, ...]
    against: Metrics | None = None
    drop: Metrics | None = None
    report: ClassReport | None = None


def evaluate(
    model: Model,
    data: Path,
    *,
    other: Model | None = None,
    limit: int | None = None,
    progress: Progress = lambda _what, _share: None,
) -> Evaluation:
    """Run `model` (and `other`) over the rows of `data`.

    Of audio, `text` gives `wer`; of pictures it is one caption or a list of them and gives `cider`, `bleu4` and
    `rouge_l`. `question` with `answer` gives `exact_match` and `vqa_accuracy`, `label` gives `top1` and a report,
    `objects` give `map` and `map50`, `user`, `item` and `score` give `recall@10` and `ndcg@10`. All are in percent;
    CIDEr is times 100 as in papers and may be over 100. Raises InputError that names the row for one that no task
    fits or whose file is unusable, TaskUnavailable where the bundle cannot do what the rows ask.
    """
    rows = read_rows(data, limit=limit)
    tasks = [task_of(row) for row in rows]
    examples = []
    for number, (row, task) in enumerate(zip(rows, tasks, strict=True)):
        progress(row.path.name, number / len(rows))
        expected = expected_of(model, row, task)
        said = said_to(model, row, task)
        compared = None if other is None else said_to(other, row, task)
        examples.append(Example(str(row.path), task, expected, said, compared, row.question))
    metrics, scores = _metrics(examples, [e.said for e in examples])
    told = tuple(replace(e, scores=own or None) for e, own in zip(examples, scores, strict=True))
    found = Evaluation(metrics, len(rows), told, report=_report(examples))
    if other is None:
        return found
    against, _ = _metrics(examples, [e.other or "" for e in examples])
    return replace(found, against=against, drop=drops(against, metrics))


def check_rows(data: Path, *, limit: int | None = None) -> int:
    """How many examples `data` has. Raises as `evaluate` does for rows that no task fits."""
    return len([task_of(row) for row in read_rows(data, limit=limit)])


def write_examples(path: Path, evaluation: Evaluation) -> None:
    """One JSON line an example. Raises StorageError."""
    lines = []
    for e in evaluation.examples:
        line = {key: value for key, value in asdict(e).items() if value is not None}
        lines.append(json.dumps(line, ensure_ascii=False))
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _metrics(examples: Sequence[Example], said: Sequence[str]) -> tuple[Metrics, list[Metrics]]:
    """The metrics of all tasks, and what each example reached by itself."""
    metrics: Metrics = {}
    each: list[Metrics] = [{} for _ in examples]
    for task in dict.fromkeys(e.task for e in examples):
        places = [place for place, e in enumerate(examples) if e.task == task]
        found = measured(task, [examples[place].expected for place in places], [said[place] for place in places])
        for name, scores in found.items():
            metrics[name] = round(scores.total, 4)
            for place, value in zip(places, scores.each, strict=False):
                each[place][name] = round(value, 4)
    return metrics, each


def _report(examples: Sequence[Example]) -> ClassReport | None:
    pairs = [(str(e.expected), e.said) for e in examples if e.task == "classify"]
    return class_report([p[0] for p in pairs], [p[1] for p in pairs]) if pairs else None
