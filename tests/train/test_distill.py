"""`edgemm distill`: what a student is made of, and that it learns from its teacher."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgemm.cli.app import invoke
from edgemm.errors import UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.pipeline import export
from edgemm.export.train.data import Splits, load
from edgemm.export.train.loop import prepared
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.distilled import Distilled, soft_loss
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.students import student_of
from tests.export.exported import checkpoint
from tests.train import data_sets


def objective_of(name, data, **options):
    source = find_checkpoint(checkpoint(name))
    rows = load(data).train[:4]
    splits = Splits(rows, rows, rows)
    return registry.find(source, None).load(source, splits, TrainOptions(**options)), splits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return data_sets.colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return data_sets.tones(tmp_path_factory.mktemp("data") / "tones")


def test_the_soft_loss_is_torchs():
    torch.manual_seed(0)
    own, theirs = torch.randn(5, 7), torch.randn(5, 7)
    expected = (theirs.div(3).softmax(-1) * (theirs.div(3).log_softmax(-1) - own.div(3).log_softmax(-1))).sum(-1).mean()
    assert float(soft_loss(own, theirs, 3.0)) == pytest.approx(9 * float(expected), rel=1e-5)
    assert float(soft_loss(theirs, theirs, 1.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["vit", "moonshine", "whisper"])
def test_a_student_keeps_the_first_and_the_last_layers(name, pictures, sounds):
    teacher = objective_of(name, pictures if name == "vit" else sounds)[0].model
    student = student_of(teacher, "half-depth")
    lists = {n: m for n, m in teacher.named_modules() if isinstance(m, torch.nn.ModuleList)}
    fewer = {n: m for n, m in student.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) < len(lists[n])}
    assert fewer
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    for place, layers in fewer.items():
        for own, theirs in zip(layers[-1].parameters(), lists[place][-1].parameters(), strict=True):
            assert torch.equal(own, theirs)


def test_a_student_of_the_same_shape_says_the_same(sounds):
    objective, splits = objective_of("moonshine", sounds, max_new_tokens=6)
    teacher = objective.model
    student = student_of(teacher, "same").eval()
    with torch.no_grad():
        assert objective.say(student, splits.test[:2]) == objective.say(teacher, splits.test[:2])


@pytest.mark.parametrize(("name", "hard"), [("vit", 0.0), ("moonshine", 0.0), ("smolvlm", 0.0), ("moonshine", 1.0)])
def test_a_student_comes_nearer_to_its_teacher(name, hard, pictures, sounds, tmp_path):
    options = {
        "steps": 15,
        "batch": 4,
        "learning_rate": 3e-3,
        "warmup": 0.0,
        "schedule": "constant",
        "max_new_tokens": 4,
    }
    objective, splits = objective_of(name, sounds if name == "moonshine" else pictures, **options)
    teacher = objective.model
    objective.model = student_of(teacher, "half-depth")
    lesson = Distilled(objective, teacher, hard=hard)
    loop = prepared(lesson, objective.model, splits, TrainOptions(**options), tmp_path / "run")
    before = [p.clone() for p in teacher.parameters()]
    loop.go()
    losses = [row["loss"] for row in loop.history if "loss" in row]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:2])
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


@pytest.mark.parametrize("shape", ["third-depth", "nothing.json"])
def test_shapes_that_are_not_known(shape, sounds):
    with pytest.raises(UsageError, match="no student"):
        student_of(objective_of("moonshine", sounds)[0].model, shape)


def test_the_command_line(pictures, tmp_path, capsys):
    (tmp_path / "one.json").write_text('{"num_hidden_layers": 1}')
    argv = ["distill", str(checkpoint("vit")), "--student", str(tmp_path / "one.json"), "--data", str(pictures)]
    argv += ["-o", str(tmp_path / "s"), "--steps", "2", "--batch", "4", "--temperature", "3", "--json"]
    assert invoke(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["metrics_teacher"].keys() == found["metrics_after"].keys()
    assert json.loads((tmp_path / "s" / "config.json").read_text())["num_hidden_layers"] == 1
    export(tmp_path / "s", tmp_path / "bundle")
    assert invoke([*argv[:-1], "--temperature", "0"]) == 2
