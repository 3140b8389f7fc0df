"""Frambicus through `finetune`: every task by what rows have, grids kept, a run that goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgemm.cli.app import invoke
from edgemm.errors import UsageError
from edgemm.export.frambicus import FrambicusForQuestionAnswering, processor_of
from edgemm.export.train.finetune import finetune
from edgemm.export.train.objectives.pretraining import OBJECTIVES
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.pretrain import Lessons, pretrain
from tests.export.exported import checkpoint
from tests.frambicus.small import tiny
from tests.train import data_sets


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    place = tmp_path_factory.mktemp("frambicus") / "checkpoint"
    tiny(FrambicusForQuestionAnswering).save_pretrained(place)
    processor_of().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pictures with captions and boxes, questions about them, and clips."""
    place = data_sets.colours(tmp_path_factory.mktemp("data") / "mixed", n=6)
    made = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    data_sets.clips(place / "clips", n=3)
    mixed = []
    for row in made:
        objects = {"bbox": row["objects"]["bbox"], "category": ["cup"]}
        mixed.append({"image": row["image"], "text": row["text"], "objects": objects})
        mixed.append({"image": row["image"], "question": "what colour is the square?", "answer": row["answer"]})
    mixed += [{"video": f"clips/{i}.mp4", "text": "nothing moves"} for i in range(3)]
    return data_sets.write_rows(place, mixed)


def test_every_task_is_learned_at_once(untrained, rows, tmp_path):
    options = TrainOptions(steps=30, batch=5, learning_rate=2e-3, evaluate_every=30, max_new_tokens=8, evaluate_limit=5)
    report = finetune(untrained, rows, tmp_path / "tuned", options=options, test=rows)
    losses = [row["loss"] for row in report.history if "loss" in row]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    wanted = {"vqa_accuracy", "exact_match", "cider", "bleu4", "rouge_l", "describe_exact_match", "map50"}
    assert wanted <= report.metrics_after.keys()
    assert report.metrics_after["vqa_accuracy"] > report.metrics_before["vqa_accuracy"]
    again = FrambicusForQuestionAnswering.from_pretrained(tmp_path / "tuned")
    assert again.config.model_type == "frambicus"
    assert not (tmp_path / "tuned.training").exists()


def test_kept_grids_change_nothing(untrained, rows, tmp_path):
    from edgemm.export.checkpoint import find_checkpoint
    from edgemm.export.train.data import load
    from edgemm.export.train.objectives import registry

    source, splits = find_checkpoint(untrained), load(rows)
    objective = registry.find(source, None).load(source, splits, TrainOptions())
    bare = objective.batch(splits.train[:4], training=False)
    objective.prepare(tmp_path / "kept")
    for _ in range(2):
        kept = objective.batch(splits.train[:4], training=False)
        for one, other in zip(bare["parts"], kept["parts"], strict=True):
            pairs = zip(one["inputs"]["grids"], other["inputs"]["grids"], strict=True)
            assert all((a == b).all() for a, b in pairs)
    assert list((tmp_path / "kept").glob("*.npz"))


def pretrained(untrained, rows, place, weights):
    options = TrainOptions(steps=12, batch=5, learning_rate=2e-3, evaluate_every=12, evaluate_limit=5)
    return pretrain(untrained, rows, place, lessons=Lessons(weights), options=options, test=rows)


@pytest.mark.parametrize("name", [*OBJECTIVES, "all"])
def test_every_objective_of_pretraining_falls_alone_and_jointly(name, untrained, rows, tmp_path):
    weights = dict.fromkeys(OBJECTIVES, 1.0) if name == "all" else {name: 1.0}
    told = rows
    if name not in ("masked_grid", "all"):
        lines = [line for line in (rows / "metadata.jsonl").read_text().splitlines() if '"text"' in line]
        told = data_sets.write_rows(tmp_path / "told", [absolute(rows, json.loads(line)) for line in lines])
    report = pretrained(untrained, told, tmp_path / "out", weights)
    assert report.metrics_after.keys() == weights.keys()
    assert all(report.metrics_after[n] < report.metrics_before[n] for n in weights)


def absolute(place, row):
    return row | {n: str(place / row[n]) for n in ("image", "video") if n in row}


def test_objectives_that_there_are_not(untrained, rows, tmp_path):
    with pytest.raises(UsageError, match="no objective masked_sound"):
        pretrained(untrained, rows, tmp_path / "out", {"masked_sound": 1.0})


def test_only_a_frambicus_is_pretrained(rows, tmp_path, capsys):
    data = data_sets.colours(tmp_path / "c")
    argv = ["pretrain", str(checkpoint("vit")), "--data", str(data), "-o", str(tmp_path / "o")]
    assert invoke([*argv, "--objective", "caption=0.5"]) == 2
    assert "only a Frambicus" in capsys.readouterr().err
