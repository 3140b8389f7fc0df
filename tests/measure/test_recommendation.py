"""Recommendation data: what is read, what is refused, and the metrics of a tiny CLIP on it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edgemm.errors import InputError
from edgemm.measure.evaluate import evaluate
from edgemm.tasks.liking import Liking, as_text, ranking_metrics
from edgemm.tasks.rows import read_rows
from tests.export.exported import model, picture

ITEMS = 14


@pytest.fixture
def data(tmp_path):
    """Two users, one by a picture and one by words; every item is shown to both, every third is liked."""
    lines = []
    for name in ("taste.png", *(f"{i}.png" for i in range(ITEMS))):
        cv2.imwrite(str(tmp_path / name), picture(30, 40, seed=len(lines)))
        lines.append(name)
    rows = [
        {"user": user, "item": f"{i}.png", "score": i % 3 if user == "boats" else int(i % 3 == 0)}
        for user in ("taste.png", "boats")
        for i in range(ITEMS)
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_rows(data):
    rows = [row.liking for row in read_rows(data)]
    assert rows[0] == Liking(data / "taste.png", data / "0.png", 1.0)
    assert rows[-1] == Liking("boats", data / "13.png", 1.0)


def test_metrics_of_a_model(data):
    with model("clip", "onnxruntime") as one:
        found = evaluate(one, data)
        expected = {"recall": [], "ndcg": []}
        for user in (data / "taste.png", "boats"):
            likings = [row.liking for row in read_rows(data) if row.liking.user == user]
            gains = [likings[x.index].score for x in one.recommend(user, [x.item for x in likings]).items]
            discounts = 1 / np.log2(np.arange(2, ITEMS + 2))
            ideal = np.sort(gains)[::-1]
            expected["ndcg"].append(gains[:10] @ discounts[:10] / (ideal[:10] @ discounts[:10]))
            expected["recall"].append(np.count_nonzero(gains[:10]) / np.count_nonzero(gains))
    assert found.metrics["recall@10"] == pytest.approx(100 * np.mean(expected["recall"]), abs=1e-3)
    assert found.metrics["ndcg@10"] == pytest.approx(100 * np.mean(expected["ndcg"]), abs=1e-3)
    assert found.n == 2 * ITEMS


def test_a_user_who_likes_nothing_does_not_count():
    lines = [as_text(Liking(user, str(i), float(user == "a" and i == 1))) for user in "ab" for i in range(3)]
    assert ranking_metrics(lines, ["0.1", "0.9", "0.2"] * 2) == {"recall@10": 100.0, "ndcg@10": 100.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user": "a"}, "line 1 lacks its item"),
        ({"user": "a", "item": "b", "score": -1}, "no score of 0 or more"),
        ({"user": "a", "item": "b", "score": "high"}, "no score of 0 or more"),
        ({"user": 3, "item": "b"}, "user is 3, a text was expected"),
        ({"user": "a", "item": "../outside.png"}, "points outside"),
    ],
)
def test_useless_rows(tmp_path, row, message):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_rows(folder)
