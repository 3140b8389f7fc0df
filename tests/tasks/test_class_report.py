"""Precision, recall and F1 against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import classification_report

from edgemm.tasks.class_report import LabelScores, class_report

LABELS = ["cup", "größe", "red apple", "tench", "Über"]
CASES = {
    "all right": (["cup", "tench"], ["cup", "tench"]),
    "all wrong": (["cup", "tench"], ["tench", "cup"]),
    "a label that is never said": (["cup", "cup", "tench"], ["cup", "cup", "cup"]),
    "a label that is only said": (["cup", "cup"], ["cup", "größe"]),
    "one": (["cup"], ["cup"]),
}
for seed in range(4):
    rng = np.random.default_rng(seed)
    CASES[f"seed {seed}"] = (
        list(map(str, rng.choice(LABELS, 50, p=[0.5, 0.2, 0.2, 0.05, 0.05]))),
        list(map(str, rng.choice(LABELS[: seed + 2], 50))),
    )


def as_theirs(own: LabelScores) -> dict[str, float]:
    return {
        "precision": own.precision / 100,
        "recall": own.recall / 100,
        "f1-score": own.f1 / 100,
        "support": own.support,
    }


@pytest.mark.parametrize("name", CASES)
def test_equals_scikit_learn(name):
    meant, said = CASES[name]
    theirs = classification_report(meant, said, output_dict=True, zero_division=0)
    found = class_report(meant, said)
    assert list(found.labels) == sorted({*meant, *said})
    for label, own in found.labels.items():
        assert as_theirs(own) == pytest.approx(theirs[label])
    assert as_theirs(found.macro) == pytest.approx(theirs["macro avg"])
    assert as_theirs(found.weighted) == pytest.approx(theirs["weighted avg"])


def test_nothing():
    assert class_report([], []).macro == LabelScores(0, 0, 0, 0)
