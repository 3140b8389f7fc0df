"""Hidden states of a teacher: which layers are compared, that they come nearer, and that nothing of it is left."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from edgemm.errors import UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.train.data import Splits, load
from edgemm.export.train.distill import Teaching, distill
from edgemm.export.train.loop import prepared
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.distilled import Distilled
from edgemm.export.train.objectives.features import Features, Shape, features_between, named_layers, watching
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.students import student_of
from tests.export.exported import checkpoint
from tests.train import data_sets

OPTIONS = {"steps": 25, "batch": 4, "learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant", "max_new_tokens": 4}
NARROW = {
    "vit": {"hidden_size": 16, "intermediate_size": 32},
    "moonshine": {"hidden_size": 16, "intermediate_size": 32},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return data_sets.colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return data_sets.tones(tmp_path_factory.mktemp("data") / "tones")


def taught(name, data, shape):
    """The objective of a student, its teacher, and one batch."""
    source = find_checkpoint(checkpoint(name))
    rows = load(data).train[:4]
    objective = registry.find(source, None).load(source, Splits(rows, rows, rows), TrainOptions(**OPTIONS))
    teacher = objective.model.eval().requires_grad_(False)
    objective.model = student_of(teacher, shape)
    return objective, teacher, objective.batch(list(rows), training=False)["parts"][0], rows


def pairs_of(features, student, teacher):
    names = [{layer: name for name, layer in named_layers(model).items()} for model in (student, teacher)]
    return [(names[0][own], names[1][theirs]) for own, theirs in features._pairs]


def test_layers_are_spread_over_the_depth(sounds):
    objective, teacher, part, _ = taught("moonshine", sounds, "half-depth")
    found = pairs_of(features_between(objective.model, teacher, part), objective.model, teacher)
    assert found == [(f"model.{part}.layers.0", f"model.{part}.layers.1") for part in ("encoder", "decoder")]
    same = pairs_of(features_between(teacher, teacher, part), teacher, teacher)
    assert all(own == theirs for own, theirs in same)
    assert len(same) == 4


def test_the_distance_of_a_model_to_itself_is_nothing_and_of_states_is_torchs(sounds):
    _, teacher, part, _ = taught("moonshine", sounds, "same")
    for kind in ("mse", "cosine"):
        features = features_between(teacher, teacher, part, kind=kind)
        with torch.no_grad(), features.watching() as seen:
            teacher(**part)
        with torch.no_grad():
            assert float(features(seen, part)) == pytest.approx(0, abs=1e-6)
    layers = [nn.Identity(), nn.Identity()]
    one, other = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    features = Features([tuple(layers)], [Shape(4, 5, 3.0)], "mse")
    projected = one @ features.projections[0].weight.T * 3
    seen = {layers[0]: one, layers[1]: other}
    assert torch.allclose(features(seen, {}), nn.functional.mse_loss(projected, other) / other.square().mean())
    # What is padding does not count.
    other[0, 1:] = 1e3
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    expected = nn.functional.mse_loss(projected[mask == 1], other[mask == 1]) / other[mask == 1].square().mean()
    assert torch.allclose(features(seen, {"attention_mask": mask}), expected)


@pytest.mark.parametrize(("name", "kind"), [("vit", "cosine"), ("moonshine", "mse")])
def test_a_narrow_student_comes_nearer_in_its_states(name, kind, pictures, sounds, tmp_path):
    data = pictures if name == "vit" else sounds
    (tmp_path / "narrow.json").write_text(json.dumps(NARROW[name]))
    objective, teacher, part, rows = taught(name, data, str(tmp_path / "narrow.json"))
    features = features_between(objective.model, teacher, part, kind=kind)
    assert all(p.in_features != p.out_features for p in features.projections)
    drawn = [p.weight.clone() for p in features.projections]

    def distance():
        with torch.no_grad(), features.watching() as seen:
            objective.model.eval()(**part)
            teacher(**part)
            return float(features(seen, part))

    before = distance()
    lesson = Distilled(objective, teacher, hard=0.0, features=features, feature_weight=5.0)
    loop = prepared(lesson, objective.model, Splits(rows, rows, rows), TrainOptions(**OPTIONS), tmp_path / "run")
    loop.go()
    assert distance() < 0.85 * before
    assert not any(torch.equal(a, b.weight) for a, b in zip(drawn, features.projections, strict=True))


def test_named_layers_and_those_that_there_are_not(sounds):
    objective, teacher, part, _ = taught("moonshine", sounds, "half-depth")
    student = objective.model
    chosen = features_between(student, teacher, part, chosen=["encoder.layers.0=encoder.layers.0"])
    assert pairs_of(chosen, student, teacher) == [("model.encoder.layers.0", "model.encoder.layers.0")]
    for word, message in (
        ("encoder.layers.9", "no layer called"),
        ("layers.0", "2 layers called"),
        ("encoder.layers.0=decoder.layers.0", "not both give hidden states"),
    ):
        with pytest.raises(UsageError, match=message):
            features_between(student, teacher, part, chosen=[word])


def test_watching_leaves_no_hook(sounds):
    _, teacher, part, _ = taught("moonshine", sounds, "same")
    layers = list(named_layers(teacher).values())
    with watching(layers), torch.no_grad():
        teacher(**part)
    assert not any(layer._forward_hooks for layer in layers)


def test_the_run_leaves_the_student_alone(pictures, tmp_path):
    options = TrainOptions(**{**OPTIONS, "steps": 2})
    teaching = Teaching(features=1.0, feature_loss="cosine")
    distill(checkpoint("vit"), pictures, tmp_path / "student", teaching=teaching, options=options)
    names = set(find_checkpoint(tmp_path / "student").tensors)
    assert names < set(find_checkpoint(checkpoint("vit")).tensors)
    with pytest.raises(UsageError, match="weight"):
        Teaching(feature_layers=("layers.0",))


def test_an_unfinished_run_with_other_teaching_is_not_gone_on_with(pictures, tmp_path):
    (tmp_path / "s.training" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "s.training" / "run.json").write_text('{"teaching": {}}')
    with pytest.raises(UsageError, match="unfinished run"):
        distill(checkpoint("vit"), pictures, tmp_path / "s", teaching=Teaching(), options=TrainOptions(**OPTIONS))
