"""The table of metrics: what each task has, which way is worse, and what a gate looks at."""

from __future__ import annotations

import pytest

from edgemm.measure.judging import worst_drop
from edgemm.tasks.scoring import METRICS, drops, measured


def test_every_metric_falls_one_way():
    zero, one = dict.fromkeys(METRICS, 0.0), dict.fromkeys(METRICS, 1.0)
    assert {name for name, drop in drops(one, zero).items() if drop < 0} == {"wer"}


@pytest.mark.parametrize(
    ("before", "after", "fell"),
    [
        (
            {"cider": 90.0, "bleu4": 40.0, "rouge_l": 50.0},
            {"cider": 88.0, "bleu4": 0.0, "rouge_l": 49.0},
            ("cider", 2.0),
        ),
        (
            {"cider": 0.0, "bleu4": 40.0, "rouge_l": 50.0},
            {"cider": 0.0, "bleu4": 0.0, "rouge_l": 20.0},
            ("rouge_l", 30.0),
        ),
        ({"exact_match": 90.0, "vqa_accuracy": 9.0}, {"exact_match": 0.0, "vqa_accuracy": 9.5}, ("vqa_accuracy", -0.5)),
        ({"wer": 5.0}, {"wer": 7.0}, ("wer", 2.0)),
    ],
)
def test_the_gate_looks_at_what_decides(before, after, fell):
    assert worst_drop(before, after) == fell


@pytest.mark.parametrize(
    ("task", "expected", "said"),
    [
        ("transcribe", "two words", "two words"),
        ("classify", "cup", "cup"),
        (
            "detect",
            '[{"label": "cup", "score": 1.0, "box_px": [0, 0, 9, 9]}]',
            '[{"label": "cup", "score": 0.5, "box_px": [0, 0, 9, 9]}]',
        ),
        ("recommend", '{"user": "u", "item": "i", "score": 1.0}', "0.5"),
        ("caption", ("two red cups on a table",), "Two red cups on a table."),
        ("answer", ("cup", "mug"), "mug"),
    ],
)
def test_every_task_has_metrics_of_the_table(task, expected, said):
    found = measured(task, [expected], [said])
    assert set(found) <= set(METRICS)
    assert any(METRICS[name].decides for name in found)
    best = {name: scores.total for name, scores in found.items() if name != "cider"}
    assert best == pytest.approx({name: 0.0 if METRICS[name].worse > 0 else 100.0 for name in best})


def test_captions_as_they_are_written():
    expected = [("A red cup, on a table.", "The cup is red"), ("Two people walk in the rain.",)]
    exact = measured("caption", expected, ["a red cup on a table", "two people walk in the rain!"])
    assert exact["bleu4"].total == pytest.approx(100)
    assert exact["rouge_l"].each == (100.0, 100.0)
    worse = measured("caption", expected, ["a cup", "people in the rain"])
    assert all(0 <= worse[name].total < exact[name].total for name in ("cider", "bleu4", "rouge_l"))
