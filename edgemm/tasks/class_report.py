"""How well every label is found: precision, recall and F1, as scikit-learn's `classification_report` gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelScores:
    """`precision`, `recall` and `f1` in percent, 0 where nothing is there to divide by. `support`: examples that have
    the label.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassReport:
    """Every label that was meant or said, in alphabetical order; the plain mean, and the mean weighted by support."""

    labels: dict[str, LabelScores]
    macro: LabelScores
    weighted: LabelScores

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A table of them: label, precision, recall, F1, examples."""
        scores = {**self.labels, "plain mean": self.macro, "weighted mean": self.weighted}
        return [(n, f"{s.precision:.1f}", f"{s.recall:.1f}", f"{s.f1:.1f}", str(s.support)) for n, s in scores.items()]


def class_report(references: Sequence[str], hypotheses: Sequence[str]) -> ClassReport:
    """The report of labels that were meant and said, one of each an example. Without examples all means are 0."""
    meant, said = Counter(references), Counter(hypotheses)
    right = Counter(r for r, h in zip(references, hypotheses, strict=True) if r == h)
    labels = {name: _scores(right[name], said[name], meant[name]) for name in sorted(meant | said)}
    every = list(labels.values())
    return ClassReport(labels, _mean(every, lambda _: 1.0), _mean(every, lambda own: own.support))


def _scores(right: int, said: int, meant: int) -> LabelScores:
    shares = (_share(right, said), _share(right, meant), _share(2 * right, said + meant))
    return LabelScores(*shares, support=meant)


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _mean(every: Sequence[LabelScores], weight: Callable[[LabelScores], float]) -> LabelScores:
    total = sum(map(weight, every))

    def mean(values: Iterable[float]) -> float:
        weighted = sum(weight(own) * value for own, value in zip(every, values, strict=True))
        return weighted / total if total else 0.0

    return LabelScores(
        precision=mean(own.precision for own in every),
        recall=mean(own.recall for own in every),
        f1=mean(own.f1 for own in every),
        support=sum(own.support for own in every),
    )
