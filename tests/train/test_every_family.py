"""Every family that has an objective learns a handful of rows by heart, and export takes what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.train import freezing
from edgemm.export.train.data import Splits, load
from edgemm.export.train.loop import prepared
from edgemm.export.train.objectives import registry
from edgemm.export.train.options import TrainOptions
from tests.export.exported import FAMILIES, TINY, checkpoint
from tests.train import data_sets

_AUDIO_MODELS = ("audio-spectrogram-transformer", "clap", "qwen2_audio", "moonshine", "whisper", "wav2vec2", "hubert")


def data_for(kind, place):
    if kind in _AUDIO_MODELS:
        return data_sets.tones(place)
    if kind == "videomae":
        return data_sets.clips(place)
    return data_sets.couples(place) if kind == "bert" else data_sets.colours(place)


# One of every kind; the others are slow together.
QUICK = ("moonshine", "wav2vec2", "smolvlm", "florence2", "blip", "vit", "yolos", "d_fine", "clip", "bert")

LONG = ("detr", "rt_detr", "rt_detr_v2")  # pictures of 640 px and more


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TINY | FAMILIES]
)
def test_learns_a_few_rows_by_heart(name, tmp_path):
    source = find_checkpoint(checkpoint(name))
    task = next(iter(registry.tasks_of(source.model_type)), None)
    if task is None:
        pytest.skip(f"{source.model_type} has no objective")
    data = load(data_for(source.model_type, tmp_path / "data"))
    rows = data.train[:4]
    splits = Splits(rows, rows, rows)
    steps = 8 if source.model_type in LONG else 20
    options = TrainOptions(steps=steps, batch=4, learning_rate=3e-3, warmup=0.0, schedule="constant", max_new_tokens=8)
    objective = registry.find(source, task).load(source, splits, options)
    if getattr(objective.model.config, "architectures", [""])[0].endswith("Model") and task == "classify":
        pytest.skip("it embeds")
    model = freezing.apply(objective.model, options)
    loop = prepared(objective, model, splits, options, tmp_path / "run")
    loop.go()
    losses = [row["loss"] for row in loop.history if "loss" in row]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < (0.95 if steps < 20 else 0.8) * np.mean(losses[:2])
    metrics, pairs = loop.judge(rows)
    assert objective.metric in metrics
    assert len(pairs) == 4


@pytest.mark.parametrize("name", ["trocr", "vit_gpt2", "blip_vqa", "florence2"])
def test_rows_that_fit_are_spoken_to_together(name, tmp_path):
    source = find_checkpoint(checkpoint(name))
    rows = load(data_sets.colours(tmp_path / "data")).train[:4]
    task = registry.tasks_of(source.model_type)[0]
    options = TrainOptions(max_new_tokens=8)
    objective = registry.find(source, task).load(source, Splits(rows, rows, rows), options)
    with torch.no_grad():
        together = objective.say(objective.model.eval(), list(rows))
        assert together == [objective.say(objective.model, [row])[0] for row in rows]
    assert len(set(together)) > 1
