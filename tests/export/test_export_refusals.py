"""What export refuses: each time with an error that says why, and nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgemm.errors import BundleError, CheckFailed, CheckpointError
from edgemm.export import making, tiles_vlm
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.pipeline import export
from edgemm.export.traced import Traced
from edgemm.export.tracing import cache_argument, cache_of, causal_bias
from edgemm.export.wrappers import CausalDecoder, layered_names
from tests.export.exported import checkpoint, rewrite

REFUSED = (CheckpointError, CheckFailed)


@pytest.fixture
def target(tmp_path):
    """Where a bundle must not appear; its folder stays empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "bundle"
    assert list(folder.iterdir()) == []


@pytest.fixture
def own(tmp_path):
    """A copy of a tiny checkpoint, to be spoiled."""
    return lambda name: shutil.copytree(checkpoint(name), tmp_path / name)


class FixedLength(CausalDecoder):
    """Works at the traced length alone."""

    def forward(self, feeds):
        batch = feeds["inputs_embeds"].shape[0]
        embeds = feeds["inputs_embeds"].reshape(batch, 3, -1)
        return super().forward({**feeds, "inputs_embeds": embeds})


class Forgetful(CausalDecoder):
    """Sees the last four positions only: as a graph it equals its module, and yet it is wrong."""

    def forward(self, feeds):
        names = layered_names("past_key_values", self.layers)
        cut = {n: feeds[n] * (torch.arange(feeds[n].shape[2]) < 4)[None, None, :, None] for n in names}
        embeds = feeds["inputs_embeds"]
        cache = cache_of([cut[n] for n in names])
        states = self.model(
            inputs_embeds=embeds,
            attention_mask=causal_bias(feeds["attention_mask"], embeds.shape[1], embeds.dtype),
            position_ids=feeds["position_ids"],
            use_cache=True,
            **cache_argument(self.model, cache),
        ).last_hidden_state
        logits = self.head(states.index_select(1, feeds["logits_indices"]))
        return (logits, *(t for layer in cache.layers for t in (layer.keys, layer.values)))


class Blind(tiles_vlm.TileEncoder):
    """A vision encoder that hardly looks at its pixels."""

    def forward(self, feeds):
        return super().forward({"pixel_values": feeds["pixel_values"] * self.strength + 0.5})


class StoneBlind(Blind):
    strength = 0.0


class AlmostBlind(Blind):
    strength = 1e-12


def test_a_decoder_of_fixed_length(target, monkeypatch):
    monkeypatch.setattr(tiles_vlm, "CausalDecoder", FixedLength)
    with pytest.raises(REFUSED, match="decoder"):
        export(checkpoint("smolvlm"), target)


def test_a_decoder_that_forgets(target, monkeypatch):
    monkeypatch.setattr(tiles_vlm, "CausalDecoder", Forgetful)
    with pytest.raises(CheckFailed, match="does not answer as the original does"):
        export(checkpoint("smolvlm"), target)


@pytest.mark.parametrize("encoder", [StoneBlind, AlmostBlind])
def test_a_dead_modality(target, monkeypatch, encoder):
    monkeypatch.setattr(tiles_vlm, "TileEncoder", encoder)
    with pytest.raises(REFUSED, match=r"vision_encoder does not (depend on|listen to) its input pixel_values"):
        export(checkpoint("smolvlm"), target)


def test_a_graph_that_differs_from_its_module(target, monkeypatch):
    original = making.traced

    def perturbed(plan):
        found = original(plan)
        name = max(found.weights, key=lambda n: found.weights[n].size)
        values = found.weights[name].copy()
        values.flat[0] += 0.5
        return Traced(found.model, {**found.weights, name: values})

    monkeypatch.setattr(making, "traced", perturbed)
    with pytest.raises(CheckFailed, match=r"model differs from the original: max abs \d") as caught:
        export(checkpoint("efficientnet"), target)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "prefix", "modality"),
    [
        ("smolvlm", "model.vision_model.", "vision encoder"),
        ("smolvlm", "model.connector.", "vision encoder"),
        ("smolvlm", "model.text_model.", "language model"),
        ("whisper", "model.encoder.", "audio encoder"),
        ("moonshine", "model.decoder.", "decoder"),
    ],
)
def test_a_modality_without_weights(target, own, name, prefix, modality):
    path = own(name)
    tensors = load_file(path / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"without its {modality}"):
        export(path, target)


@pytest.mark.parametrize("name", ["smolvlm", "whisper", "moonshine", "efficientnet"])
def test_one_missing_weight(target, own, name):
    """transformers would draw it at random and go on."""
    path = own(name)
    tensors = load_file(path / "model.safetensors")
    lost = next(k for k in sorted(tensors) if k.endswith("weight") and ".1." in k)
    save_file({k: v for k, v in tensors.items() if k != lost}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights|does not fit|is no EfficientNet"):
        export(path, target)


@pytest.mark.parametrize("name", ["smolvlm", "whisper", "efficientnet"])
def test_a_weight_of_another_shape(target, own, name):
    path = own(name)
    tensors = load_file(path / "model.safetensors")
    wide = max(tensors, key=lambda k: tensors[k].numel())
    tensors[wide] = tensors[wide][:-1].contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError):
        export(path, target)


def test_pickles_only(target, own):
    path = own("smolvlm")
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only as a pickle \(pytorch_model.bin\)") as caught:
        export(path, target)
    assert "safe_serialization" in caught.value.hint


@pytest.mark.parametrize("damage", ["cut", "emptied", "no header", "absurd header", "grown"])
def test_torn_weights(target, own, damage):
    path = own("whisper")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    damaged = {
        "cut": whole[:-1],
        "emptied": b"",
        "no header": b"\0" * 8 + whole[8:],
        "absurd header": b"\xff" * 8 + whole[8:],
        "grown": whole + b"\0",
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="torn"):
        export(path, target)


@pytest.mark.parametrize(
    ("model_type", "nearest"), [("wisper", "whisper"), ("smolvlm2", "smolvlm"), ("moonshin", "moonshine")]
)
def test_unknown_model_types_name_their_nearest(target, own, model_type, nearest):
    path = own("whisper")
    rewrite(path / "config.json", model_type=model_type)
    with pytest.raises(CheckpointError, match=f"{model_type}.*nearest are.*{nearest}"):
        export(path, target)


def test_unlike_anything(target, own):
    path = own("whisper")
    rewrite(path / "config.json", model_type="qqqq")
    with pytest.raises(CheckpointError) as caught:
        export(path, target)
    assert "nearest" not in caught.value.message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": ""}', "{}"])
def test_configurations_that_are_none(target, own, content):
    path = own("whisper")
    (path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        export(path, target)


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_host_files_that_are_missing(target, own, file):
    path = own("smolvlm")
    (path / file).unlink()
    with pytest.raises(CheckpointError):
        export(path, target)


def test_a_missing_shard(own):
    path = own("moonshine")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00001"):
        find_checkpoint(path)


def test_places_that_are_no_checkpoint(tmp_path, target):
    (tmp_path / "file").write_text("x")
    for path, what in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is a file")):
        with pytest.raises(CheckpointError, match=what):
            export(path, target)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        export(tmp_path, target)


def test_int8_without_examples(target):
    with pytest.raises(CheckpointError, match="needs examples"):
        export(checkpoint("efficientnet"), target, precision="int8")


def test_an_unknown_precision(target):
    with pytest.raises(CheckpointError, match="int3 is not a precision"):
        export(checkpoint("efficientnet"), target, precision="int3")


def test_int4_without_examples_where_the_encoder_wants_them(target):
    with pytest.raises(CheckpointError, match="real examples") as refusal:
        export(checkpoint("smolvlm"), target, precision="int4")
    assert "--calib" in refusal.value.hint


def test_a_target_that_stands_is_refused_before_any_work(tmp_path):
    letter = tmp_path / "mine" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    with pytest.raises(BundleError, match="no bundle"):
        export(tmp_path / "no checkpoint at all", letter.parent, overwrite=True)
    assert letter.read_text() == "dear"
