"""One file of weights for every class; processor and tokenizer beside it."""

import copy
import os

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForObjectDetection, AutoProcessor, AutoTokenizer

from edgemm.errors import CheckpointError, InputError
from edgemm.export import frambicus
from edgemm.export.frambicus import FrambicusForImageCaptioning, FrambicusModel, FrambicusTokenizer, locate
from edgemm.export.frambicus.building import save_without_towers
from tests.frambicus.small import noise, tiny

CLASSES = [getattr(frambicus, name) for name in frambicus.__all__ if name.startswith("FrambicusFor")]
IDS = torch.tensor([[1, 278, 32000]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory, processor):
    """A checkpoint that the captioning class wrote, and that class."""
    path = tmp_path_factory.mktemp("frambicus")
    model = tiny(FrambicusForImageCaptioning)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path, model


@pytest.mark.parametrize("cls", [FrambicusModel, *CLASSES], ids=lambda c: c.__name__)
def test_every_class_loads_the_file(saved, cls):
    path, model = saved
    loaded, info = cls.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    before = model.state_dict()
    assert all(torch.equal(before[k], v) for k, v in loaded.state_dict().items())
    assert {n.split(".")[0] for n, p in loaded.named_parameters() if not p.requires_grad} == {"vision", "speech"}


def test_a_round_trip_says_the_same(saved, tmp_path):
    path, model = saved
    pixels = noise(1)
    with torch.no_grad():
        want = model(input_ids=IDS, pixel_values=pixels).logits
        FrambicusModel.from_pretrained(path).save_pretrained(tmp_path)
        again = FrambicusForImageCaptioning.from_pretrained(tmp_path)
        torch.testing.assert_close(again(input_ids=IDS, pixel_values=pixels).logits, want, atol=1e-5, rtol=1e-5)
    assert again.config.detector_config.id2label == {0: "cup", 1: "dog", 2: "boat"}


def test_a_checkpoint_can_leave_its_towers_where_they_are(saved, tmp_path):
    _, model = saved
    towers = os.path.relpath(locate.towers(), tmp_path)
    save_without_towers(model, tmp_path, towers)
    assert (tmp_path / "model.safetensors").stat().st_size < 12e6
    loaded, info = FrambicusForImageCaptioning.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.towers is None
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=2e-3, rtol=1e-3)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.vision.classifier.bias += 1
    with pytest.raises(CheckpointError, match=r"vision\.classifier\.bias and 0 more"):
        save_without_towers(moved, tmp_path, towers)


def test_auto_classes_know_it(saved):
    path, _ = saved
    assert AutoConfig.from_pretrained(path).model_type == "frambicus"
    assert type(AutoModelForObjectDetection.from_pretrained(path)).__name__ == "FrambicusForDetection"
    assert type(AutoProcessor.from_pretrained(path)).__name__ == "FrambicusProcessor"
    assert type(AutoTokenizer.from_pretrained(path)) is FrambicusTokenizer


def test_the_processor_survives(saved, processor):
    again = frambicus.FrambicusProcessor.from_pretrained(saved[0])
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    given = {"images": [picture], "text": ["is it red"], "audio": [np.zeros(8000, np.float32)], "task": "answer"}
    one, other = processor(**given), again(**given)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_repositorys_checkpoint_has_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgemm.export.__file__", str(tmp_path / "site-packages/edgemm/export/__init__.py"))
    with pytest.raises(CheckpointError, match="not in its wheel"):
        FrambicusModel.from_pretrained("frambicus")
    (tmp_path / "samples/checkpoint/frambicus").mkdir(parents=True)
    (tmp_path / "samples/checkpoint/frambicus/config.json").write_text("{}")
    assert locate.located("frambicus") == tmp_path / "samples/checkpoint/frambicus"
    assert locate.located("./frambicus") == "./frambicus"


def test_prompts_and_labels(processor):
    tokenizer = processor.tokenizer
    batch = processor.write("answer", ["what is it", "who"], ["a cat", "two dogs"])
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert [t.split() for t in texts] == [["what", "is", "it", "a", "cat"], ["who", "two", "dogs"]]
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        said = labels[labels != -100]
        assert said[-1] == tokenizer.eos_token_id
        assert torch.equal(ids[labels != -100], said)
    prompts = processor.write("answer", ["what is it", "who"])
    assert (prompts["input_ids"][:, -1] == tokenizer.task_id("answer")).all()
    assert prompts["attention_mask"].tolist()[1][0] == 0
    with pytest.raises(InputError, match="no task dream"):
        tokenizer.task_id("dream")


def test_frames_and_silence_are_padded(processor):
    red = np.full((50, 80, 3), (255, 0, 0), np.uint8)
    batch = processor(
        images=[red, [red, red, red], None], audio=[None, np.ones(3200, np.float32), np.ones(160, np.float32)]
    )
    assert batch["pixel_values"].shape == (3, 3, 3, 224, 224)
    assert batch["frame_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert batch["pixel_values"][0, 0, 0].unique().item() == 1.0
    assert batch["input_values_mask"].sum(1).tolist() == [0, 3200, 160]
    with pytest.raises(InputError, match="one number"):
        processor(images=[red], text=["a", "b"])
