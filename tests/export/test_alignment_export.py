"""The decoder's output `alignment` against transformers' cross-attentions, in every precision; bundles without it."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError, TaskUnavailable
from edgemm.export.pipeline import export
from edgemm.model import Model
from edgemm.runtimes.base import as_numpy
from tests.export.exported import EXACT, RUNTIMES, checkpoint, exported, model, rewrite, sound

IDS = (31, 7, 90, 44, 205, 60)
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.3}


@cache
def original(features):
    """Weights [heads, S, T'] of the chosen heads for `IDS`; `features` is the bytes of [1, mels, frames]."""
    network = WhisperForConditionalGeneration.from_pretrained(
        checkpoint("whisper"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    values = torch.frombuffer(bytearray(features), dtype=torch.float32).reshape(1, 80, -1)
    with torch.no_grad():
        out = network(input_features=values, decoder_input_ids=torch.tensor([IDS]), output_attentions=True)
    heads = network.generation_config.alignment_heads
    return torch.stack([out.cross_attentions[layer][0, head] for layer, head in heads]).numpy()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_alignment_equals_the_originals_attention(precision, runtime):
    features = np.random.default_rng(2).normal(0, 0.5, (1, 80, 3000)).astype(np.float32)
    with model("whisper", runtime) as exact, model("whisper", runtime, precision) as one:
        # An int8 encoder of random weights hears something else: this is about the decoder.
        heard = exact.task("transcribe")._encode({"input_features": features})
        cross = {name: as_numpy(value) for name, value in heard.items()}
        task = one.task("transcribe")
        decoder, embed = task._graphs.decoder(alignment=True), task._graphs.embed()
        decoder.prefill(embed(np.array([IDS[:4]])), cross=cross)
        found = [decoder.alignment()]
        for token in IDS[4:]:
            decoder.step(embed(np.array([[token]])))
            found.append(decoder.alignment())
    found = np.concatenate(found, axis=2)[0].astype(np.float32)
    expected = original(features.tobytes())
    assert found.shape == expected.shape
    assert float(expected.max()) > 20 / expected.shape[2], "flat attention would hide a wrong head"
    # Half of the sum of differences: the share of the attention that is elsewhere.
    assert float(np.abs(found - expected).sum(-1).max()) / 2 < TOLERANCES[precision]


def test_the_manifest_names_the_output_and_its_heads():
    manifest = exported("whisper").manifest
    (output,) = [t for t in manifest.component("decoder").outputs if t.name == "alignment"]
    assert [d.name for d in output.dims] == ["batch", "", "new", "source"]
    generation = manifest.models[0].generation
    assert output.dims[1].max == len(generation.alignment_heads) == 2
    assert generation.median_filter_width == 7


def changed(target, file, **values):
    shutil.copytree(checkpoint("whisper_en"), target)
    rewrite(target / file, **values)
    return target


def test_without_alignment_heads_there_are_no_times_of_words(tmp_path):
    path = changed(tmp_path / "checkpoint", "generation_config.json")
    settings = json.loads((path / "generation_config.json").read_text())
    del settings["alignment_heads"]
    (path / "generation_config.json").write_text(json.dumps(settings))
    report = export(path, tmp_path / "bundle")
    assert report.manifest.models[0].generation.alignment_heads == ()
    assert "alignment" not in [t.name for t in report.manifest.component("decoder").outputs]
    with Model(open_bundle(tmp_path / "bundle"), runtime="onnxruntime", options=EXACT) as one:
        with pytest.raises(TaskUnavailable, match="alignment_heads"):
            one.transcribe(sound(1.0), words=True)
        with model("whisper_en", "onnxruntime") as other:
            assert one.transcribe(sound(1.0)).tokens == other.transcribe(sound(1.0)).tokens


@pytest.mark.parametrize("heads", [[[2, 0]], [[0, 2]], [[-1, 0]], [[0, 0, 0]], [3]])
def test_heads_that_the_decoder_lacks_are_refused(tmp_path, heads):
    path = changed(tmp_path / "checkpoint", "generation_config.json", alignment_heads=heads)
    with pytest.raises(CheckpointError, match="alignment_heads"):
        export(path, tmp_path / "bundle")


def test_a_filter_without_a_middle_is_refused(tmp_path):
    path = changed(tmp_path / "checkpoint", "config.json", median_filter_width=4)
    with pytest.raises(CheckpointError, match="median_filter_width"):
        export(path, tmp_path / "bundle")
