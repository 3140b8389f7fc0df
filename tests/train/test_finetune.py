"""`edgemm finetune` end to end: choices, reports, a kill in the middle, wrong inputs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgemm.cli.app import invoke
from edgemm.errors import InputError, UsageError
from edgemm.export.pipeline import export
from edgemm.export.train.finetune import finetune
from edgemm.export.train.options import TrainOptions
from tests.export.exported import checkpoint
from tests.train import data_sets

QUICK = {"steps": 6, "batch": 4, "learning_rate": 1e-3, "evaluate_every": 3, "save_every": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return data_sets.colours(tmp_path_factory.mktemp("data") / "colours")


def test_a_classifier_gets_the_labels_of_the_data_and_export_takes_it(pictures, tmp_path):
    options = TrainOptions(**{**QUICK, "steps": 40, "learning_rate": 3e-3})
    report = finetune(checkpoint("vit"), pictures, tmp_path / "tuned", options=options, test=pictures)
    assert report.metrics_before["top1"] < 70
    assert report.metrics_after["top1"] > 90
    found = json.loads((tmp_path / "tuned" / "report" / "report.json").read_text())
    assert found["metrics_after"] == dict(report.metrics_after)
    assert (tmp_path / "tuned" / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "tuned" / "report" / "index.html").read_text()
    assert "http" not in page
    assert not (tmp_path / "tuned.training").exists()
    bundle = export(tmp_path / "tuned", tmp_path / "bundle")
    assert json.loads((bundle.bundle / "host" / "labels.json").read_text()) == ["blue", "green", "red"]


@pytest.mark.parametrize(("name", "metric"), [("smolvlm", "vqa_accuracy"), ("trocr", "cider")])
def test_texts_are_judged_by_what_the_rows_have(name, metric, pictures, tmp_path):
    options = TrainOptions(**{**QUICK, "steps": 2, "evaluate_every": 2, "max_new_tokens": 4})
    rows = data_sets.write_rows(tmp_path / "data", captions(pictures) if metric == "cider" else questions(pictures))
    report = finetune(checkpoint(name), rows, tmp_path / "tuned", options=options)
    assert metric in report.metrics_after
    assert report.task == ("answer" if metric == "vqa_accuracy" else "caption")


def captions(data):
    return [{"image": str(data / row["image"]), "text": row["text"]} for row in rows_of(data)]


def questions(data):
    keys = ("question", "answer")
    return [{"image": str(data / row["image"]), **{k: row[k] for k in keys}} for row in rows_of(data)]


def rows_of(data):
    return [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()][:6]


def run(place, **more):
    return finetune(checkpoint("vit"), more.pop("data"), place, options=TrainOptions(**{**QUICK, **more}))


def losses(report):
    return [row["loss"] for row in report.history if "loss" in row]


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_goes_on_with_the_same_losses(pictures, tmp_path, monkeypatch, step):
    from transformers import TrainerCallback

    from edgemm.export.train import loop

    whole = run(tmp_path / "whole", data=pictures, dropout=0.2)

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            if state.global_step == step + 1:
                raise KeyboardInterrupt

    usual = loop.Tell
    monkeypatch.setattr(loop, "Tell", lambda progress: Kill())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", data=pictures, dropout=0.2)
    assert (tmp_path / "cut.training" / f"checkpoint-{step}").is_dir()
    # A torn checkpoint is passed over.
    torn = tmp_path / "cut.training" / "checkpoint-99"
    shutil.copytree(tmp_path / "cut.training" / f"checkpoint-{step}", torn)
    (torn / "trainer_state.json").write_text("{")
    monkeypatch.setattr(loop, "Tell", usual)
    resumed = run(tmp_path / "cut", data=pictures, dropout=0.2)
    np.testing.assert_allclose(losses(resumed), losses(whole), atol=1e-5)
    assert resumed.metrics_after == whole.metrics_after


def test_an_unfinished_run_is_not_mixed_with_other_choices(pictures, tmp_path):
    (tmp_path / "x.training" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "x.training" / "run.json").write_text('{"options": "others"}')
    with pytest.raises(UsageError, match="unfinished run"):
        run(tmp_path / "x", data=pictures)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optimizer": "Adamw"}, "no optimizer"),
        ({"schedule": "cosin"}, "no schedule"),
        ({"metric": "bleu"}, "no metric"),
        ({"optimizer_options": {"momentums": 1}}, "momentums"),
        ({"freeze": ("tower",)}, "no parameter is called"),
        ({"freeze": ("all",)}, "every parameter is frozen"),
        ({"lora": 4, "lora_targets": ("nothing",)}, "no layer for adapters"),
    ],
)
def test_choices_that_do_not_fit_are_refused(pictures, tmp_path, more, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "x", data=pictures, **more)


def test_a_data_set_without_what_the_task_needs_is_refused(tmp_path):
    data = data_sets.write_rows(tmp_path / "d", [{"image": "a.png"}] * 4)
    with pytest.raises(InputError, match="label"):
        run(tmp_path / "x", data=data)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "RMSprop", "NAdam"])
def test_optimizers_of_torch(pictures, tmp_path, name):
    options = {"momentum": 0.9} if name == "SGD" else {}
    report = run(tmp_path / "x", data=pictures, optimizer=name, optimizer_options=options, steps=3)
    assert np.isfinite(losses(report)).all()


def weights(path):
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_what_is_frozen_stays_and_adapters_are_merged(pictures, tmp_path):
    before = weights(checkpoint("vit"))
    run(tmp_path / "head", data=pictures, freeze=("all",), unfreeze=("head",))
    after = weights(tmp_path / "head")
    body = [n for n in after if not n.startswith("classifier")]
    assert all((after[n] == before[n]).all() for n in body)
    run(tmp_path / "lora", data=pictures, lora=2, unfreeze=("head",))
    adapted = weights(tmp_path / "lora")
    assert set(adapted) == set(after)
    changed = {n for n in body if not (adapted[n] == before[n]).all()}
    assert any("query" in n or "q_proj" in n for n in changed)
    assert not any("layernorm" in n for n in changed)


def test_early_stopping_by_the_metric(pictures, tmp_path):
    report = run(
        tmp_path / "x", data=pictures, learning_rate=0.0, steps=30, evaluate_every=2, patience=2, weight_decay=0.0
    )
    assert report.steps == 6


def test_the_command_line(pictures, tmp_path, capsys):
    argv = ["finetune", str(checkpoint("vit")), "--data", str(pictures), "-o", str(tmp_path / "t"), "--steps", "2"]
    argv += ["--batch", "4", "--optimizer", "SGD", "--optimizer-option", "momentum=0.9", "--lr", "0.01", "--json"]
    assert invoke(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"checkpoint", "metrics_before", "metrics_after", "seconds"} <= found.keys()
    assert invoke([*argv]) == 1
    assert "exists" in capsys.readouterr().err


def test_efficientnet_lite0_gets_other_labels_under_its_published_names(pictures, tmp_path):
    options = TrainOptions(steps=24, batch=6, learning_rate=1e-3, evaluate_every=24)
    report = finetune(checkpoint("efficientnet"), pictures, tmp_path / "tuned", options=options, test=pictures)
    trained = [row["loss"] for row in report.history if "loss" in row]
    assert np.mean(trained[-5:]) < 0.8 * np.mean(trained[:3])
    before, after = weights(checkpoint("efficientnet")), weights(tmp_path / "tuned")
    assert after.keys() == {n for n in before if not n.endswith("num_batches_tracked")}
    assert after["_fc.weight"].shape[0] == 3
    bundle = export(tmp_path / "tuned", tmp_path / "bundle")
    assert json.loads((bundle.bundle / "host" / "labels.json").read_text()) == ["blue", "green", "red"]
    # Trained on with the same labels, the head stays.
    again = {"learning_rate": 0.0, "weight_decay": 0.0, "steps": 1, "batch": 4}
    finetune(tmp_path / "tuned", pictures, tmp_path / "again", options=TrainOptions(**again))
    assert (weights(tmp_path / "again")["_fc.weight"] == after["_fc.weight"]).all()
