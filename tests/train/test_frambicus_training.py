"""Frambicus through `finetune`: every task by what rows have, grids kept, a run that goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgemm.cli.app import invoke
from edgemm.errors import InputError, UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.frambicus import FrambicusForQuestionAnswering, processor_of
from edgemm.export.train.data import load
from edgemm.export.train.finetune import finetune
from edgemm.export.train.objectives import frambicus as frambicus_objective
from edgemm.export.train.objectives import guidance, registry
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
    source, splits = find_checkpoint(untrained), load(rows)
    objective = registry.find(source, None).load(source, splits, TrainOptions())
    bare = objective.batch(splits.train[:4], training=False)
    objective.prepare(tmp_path / "kept")
    for _ in range(2):
        kept = objective.batch(splits.train[:4], training=False)
        for one, other in zip(bare["parts"], kept["parts"], strict=True):
            pairs = zip(one["senses"]["grids"], other["senses"]["grids"], strict=True)
            assert all((a == b).all() for a, b in pairs)
    assert list((tmp_path / "kept").glob("*/*.npz"))


@pytest.fixture(scope="module")
def objective(untrained, rows):
    source = find_checkpoint(untrained)
    return registry.find(source, None).load(source, load(rows), TrainOptions())


def test_rows_of_a_picture_stand_together(objective, rows):
    units = objective.units(load(rows).train)
    named = [{sample.values.get("image") or sample.values.get("video") for sample in unit} for unit in units]
    assert all(len(names) == 1 for names in named)
    assert len({name for names in named for name in names}) == len(units) < len(load(rows).train)


def test_sharing_a_picture_changes_no_loss(objective, rows):
    samples = [s for s in load(rows).train if s.has("image")][:4]
    model = objective.model.eval()
    with torch.no_grad():
        together = objective.compute(model, objective.batch(samples, training=False))
        alone = [objective.batch([s], training=False) for s in samples]
        losses = [objective.compute(model, batch) for batch in alone]
    weights = [sum(objective.weight_of(part) for part in batch["parts"]) for batch in alone]
    assert len(samples) == 4
    by_rows = sum(loss * n for loss, n in zip(losses, weights, strict=True)) / sum(weights)
    # A task's loss is a mean over its labels, not over its rows: captions of one length make both the same.
    torch.testing.assert_close(together, by_rows, atol=0.2, rtol=0.1)


def test_padding_to_shapes_that_repeat_changes_no_loss(objective, rows, monkeypatch):
    samples = [s for s in load(rows).train if s.has("image")][:5]
    model = objective.model.eval()

    def loss(size):
        monkeypatch.setattr(frambicus_objective, "_ROUND", size)
        batch = objective.batch(samples, training=False)
        with torch.no_grad():
            return objective.compute(model, batch), [a["inputs"] for p in batch["parts"] for a in p["asked"]]

    (rounded, padded), (plain, bare) = loss(8), loss(1)
    torch.testing.assert_close(rounded, plain, atol=1e-5, rtol=1e-5)
    sizes = [tuple(inputs["input_ids"].shape) for inputs in padded if "input_ids" in inputs]
    assert all(size % 8 == 0 for shape in sizes for size in shape)
    assert sizes != [tuple(inputs["input_ids"].shape) for inputs in bare if "input_ids" in inputs]


def test_a_picture_is_named_by_what_lies_in_the_memory(untrained, rows, tmp_path):
    lines = [json.loads(line) for line in (rows / "metadata.jsonl").read_text().splitlines()]
    shown = [absolute(rows, {"image": row["image"]}) for row in lines if row.get("objects")]
    data = data_sets.write_rows(tmp_path / "named", [row | {"task": "name"} for row in shown])
    test = data_sets.write_rows(tmp_path / "told", [row | {"text": "a cup"} for row in shown])
    options = TrainOptions(steps=20, batch=2, learning_rate=2e-3, max_new_tokens=4)
    report = finetune(untrained, data, tmp_path / "tuned", options=options, validation=test)
    losses = [row["loss"] for row in report.history if "loss" in row]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_pictures_and_texts_find_each_other(untrained, rows, tmp_path):
    lines = [json.loads(line) for line in (rows / "metadata.jsonl").read_text().splitlines()]
    told = [absolute(rows, row) for row in lines if row.get("text") and row.get("image")]
    pairs = [{"image": row["image"], "text": row["text"], "task": "recommend"} for row in told]
    data = data_sets.write_rows(tmp_path / "pairs", pairs)
    options = TrainOptions(steps=16, batch=6, learning_rate=2e-3, evaluate_every=16)
    report = finetune(untrained, data, tmp_path / "tuned", options=options, validation=data, test=data)
    losses = [row["loss"] for row in report.history if "loss" in row]
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3])
    assert "recall@10" in report.metrics_after


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


def test_pictures_need_no_text_and_texts_are_missed(untrained, rows, tmp_path):
    lines = [json.loads(line) for line in (rows / "metadata.jsonl").read_text().splitlines()]
    bare = [absolute(rows, {name: row[name]}) for row in lines for name in ("image", "video") if row.get(name)]
    data = data_sets.write_rows(tmp_path / "bare", bare[:4])
    options = TrainOptions(steps=2, batch=2, evaluate_every=2)
    report = pretrain(
        untrained, data, tmp_path / "out", lessons=Lessons({"masked_grid": 1.0}), options=options, test=data
    )
    assert report.metrics_after.keys() == {"masked_grid"}
    with pytest.raises(InputError, match="none of text"):
        pretrain(untrained, data, tmp_path / "told", lessons=Lessons({"caption": 1.0}), options=options)


def test_objectives_that_there_are_not(untrained, rows, tmp_path):
    with pytest.raises(UsageError, match="no objective masked_sound"):
        pretrained(untrained, rows, tmp_path / "out", {"masked_sound": 1.0})


def test_only_a_frambicus_is_pretrained(rows, tmp_path, capsys):
    data = data_sets.colours(tmp_path / "c")
    argv = ["pretrain", str(checkpoint("vit")), "--data", str(data), "-o", str(tmp_path / "o")]
    assert invoke([*argv, "--objective", "caption=0.5"]) == 2
    assert "only a Frambicus" in capsys.readouterr().err


def test_a_head_is_shown_where_words_stand(objective, rows):
    samples = [s for s in load(rows).train if s.has("image", "question")][:3]
    batch = objective.batch(samples, training=True)
    (part,), model = batch["parts"], objective.model.eval()
    (asked,) = part["asked"]
    with torch.no_grad():
        sight = model.see(**part["senses"])
        spelled = objective._spelled(model, sight)
        memory = model.remember(sight, None)
        assert spelled.shape == (*memory.mask.shape, 2)
        assert memory.mask[:, -1].all()
        # one place says what the question says: a head that looks there, or at the end for all else, loses nothing
        ids = asked["inputs"]["input_ids"]
        spelled[:, 5, 0] = ids[asked["rows"].argsort(stable=True)[:3], 1]
        cross = model.text.layers[1].cross
        with guidance.Watched(cross) as watched:
            model.speak(ids, memory, asked["inputs"]["attention_mask"], rows=asked["rows"])
        own = spelled[asked["rows"]]
        standing = (ids[:, :, None, None] == own[:, None]).any(-1)
        loss = guidance.words(watched, standing, torch.ones_like(ids, dtype=torch.bool))
        seen = []
        keep = cross.register_forward_hook(lambda m, a, k, o: seen.append(a[0]), with_kwargs=True)
        model.speak(ids, memory, asked["inputs"]["attention_mask"], rows=asked["rows"])
        keep.remove()
        width = cross.q_proj.out_features // cross.heads
        query, key = cross.q_proj(seen[0])[..., :width], cross.k_proj(memory.states)[asked["rows"]][..., :width]
        bias = torch.where(memory.mask[asked["rows"]] != 0, 0.0, -1e30)[:, None]
        weights = (query @ key.transpose(1, 2) / width**0.5 + bias).softmax(-1)
        there = standing.clone()
        lost = ~there.any(-1)
        there[..., -1] |= lost
        surprise = -(weights * there).sum(-1).log()
    torch.testing.assert_close(loss, surprise[lost].mean() + surprise[~lost].mean(), atol=1e-4, rtol=1e-4)


def test_two_heads_are_shown_what_a_question_is_about():
    class Looks:
        """Both heads are sure of one place each."""

        def __init__(self, first, second):
            self._at = (first, second)

        def scores(self, head):
            return (
                torch.nn.functional.one_hot(torch.tensor(self._at[head]), 8).float().log()[None, None].expand(2, 8, -1)
            )

    asked = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    found = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0, 1]], dtype=torch.bool)
    assert guidance.things(Looks(2, 4), found[:1], asked[:1]) == 0
    assert torch.isinf(guidance.things(Looks(4, 4), found[:1], asked[:1]))
    assert guidance.things(Looks(2, 2), found[1:], asked[1:]) == 0, "there is one thing, for both"
    assert guidance.things(Looks(0, 0), found & False, asked) == 0, "there is nothing to look at"


def test_what_a_caption_names_next():
    camera, video, owl = (0, [7]), (1, [6, 7]), (2, [9, 8])
    #            "a" "green" "owl"  "and" "two" "video camera" end
    ids = [-100, -100, 20, 21, 9, 8, 22, 23, 6, 7, 2, -100]
    about = guidance.named_next(ids, [camera, video, owl])
    assert about == [-1, 2, 2, 2, 2, 1, 1, 1, 1, -1, -1, -1]
    assert guidance.named_next([-100] * 3, [owl]) == [-1] * 3
    late = [-100, 20, 20, 20, 20, 20, 20, 9, 8]
    assert guidance.named_next(late, [owl]) == [-1, -1, 2, 2, 2, 2, 2, 2, -1], "what stands long before is of another"
