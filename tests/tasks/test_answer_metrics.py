"""Exact match and VQA accuracy: the rules of the challenge one by one, and its formula by counting."""

from __future__ import annotations

from itertools import combinations

import pytest

from edgemm.tasks.answer_metrics import exact_match, normalised_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A red Cup.", "red cup"),
        ("the an a", ""),
        ("Two", "2"),
        ("none", "0"),
        ("ten o'clock", "10 o'clock"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("don’t know", "don't know"),
        ("its", "its"),
        ("3.5 m.", "3.5 m"),
        ("100,978", "100978"),
        ("black/white", "black white"),
        ("yes, it is", "yes it is"),
        ("yes,no", "yes no"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("t-shirt", "t shirt"),
        ("What?!", "what"),
        ("größe", "größe"),
        (" red\n\tcup ", "red cup"),
        ("", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalised_answer(text) == normal


def left_out(answers, said):
    """The definition of Antol et al. in words: the mean over every nine of the ten people."""
    subsets = list(combinations(answers, len(answers) - 1))
    return 100 * sum(min(sum(a == said for a in own) / 3, 1) for own in subsets) / len(subsets)


@pytest.mark.parametrize("agree", range(11))
def test_ten_people(agree):
    answers = ["yes"] * agree + [f"no{i}" for i in range(10 - agree)]
    found = vqa_accuracy([answers], ["Yes."])
    assert found.total == pytest.approx(left_out(answers, "yes"))
    assert found.total == pytest.approx(min(100, 30 * agree))


def test_normalised_people_agree():
    answers = ["two", "2", "Two.", "the two", *["many"] * 6]
    assert vqa_accuracy([answers], ["2"]).total == 100
    assert vqa_accuracy([[*answers[:2], *["many"] * 8]], ["two"]).total == pytest.approx(60)


def test_fewer_answers_are_alternatives():
    found = vqa_accuracy([["bike", "bicycle"], ["a cup"], ["one"], [""]], ["Bicycle", "cup", "two", "something"])
    assert found.each == (100, 100, 0, 0)
    assert found.total == 50


def test_exact_match():
    answers = [["A cup"], ["bike", "bicycle"], ["two"], ["größe"], ["x"]]
    found = exact_match(answers, ["a  CUP", "bicycle", "2", "GRÖSSE", ""])
    assert found.each == (100, 100, 0, 100, 0)
    assert found.total == 60
    assert exact_match([], []).total == 0
