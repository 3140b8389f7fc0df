"""Directories under optimum's file names: what becomes a bundle, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import openvino
import pytest
import torch
from transformers import Dinov2Model, Wav2Vec2ForCTC

from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError
from edgemm.export.graph import trace
from edgemm.export.model_plan import Example
from edgemm.export.pipeline import export
from edgemm.measure.inspection import inspect
from edgemm.model import Model
from tests.export.exported import calibration_folder, checkpoint, picture, plan, rewrite, sound

# Of these the second axis is open too.
_OPEN = ("input_values",)


@pytest.fixture
def made(tmp_path):
    """A classifier's directory as optimum-onnx writes it."""
    path = shutil.copytree(checkpoint("vit"), tmp_path / "vit-onnx")
    (path / "model.safetensors").unlink()
    onnx.save(trace(plan("vit").graphs[0]), path / "model.onnx")
    return path


def test_a_classifier_runs(made, tmp_path):
    found = inspect(made)
    assert (found.kind, found.maker, found.tasks, found.problems) == ("graphs", "optimum-onnx", ("classify",), ())
    export(made, tmp_path / "bundle")
    image = picture(48, 64)

    wanted = plan("vit").reference(Example(image=image)).probabilities
    with Model(open_bundle(tmp_path / "bundle"), runtime="onnxruntime") as model:
        np.testing.assert_allclose(model.task("classify").probabilities(image), wanted, atol=1e-5)
    with pytest.raises(CheckpointError, match="in its own precision"):
        export(made, tmp_path / "half", precision="fp16")


def _as_optimum_writes(path, model, inputs, outputs):
    """`model.onnx` under transformers' names, the axes that optimum leaves open, no weights beside it."""
    dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs if name in _OPEN}
    torch.onnx.export(
        model.eval(),
        kwargs=inputs,
        f=path / "model.onnx",
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes={name: dynamic.get(name, {0: torch.export.Dim.DYNAMIC}) for name in inputs},
        external_data=False,
        verbose=False,
    )
    for weights in path.glob("*.safetensors"):
        weights.unlink()
    return path


@pytest.mark.filterwarnings("ignore")
def test_speech_of_ctc_runs(tmp_path):
    path = shutil.copytree(checkpoint("wav2vec2"), tmp_path / "heard")
    original = plan("wav2vec2").reference
    model = Wav2Vec2ForCTC.from_pretrained(path, attn_implementation="eager")
    _as_optimum_writes(path, model, {"input_values": torch.zeros(2, 8000)}, ["logits"])
    assert inspect(path).tasks == ("transcribe",)
    export(path, tmp_path / "bundle", calibrate_on=[calibration_folder()])
    heard = sound(2.3, seed=5)
    with Model(open_bundle(tmp_path / "bundle"), runtime="onnxruntime") as model:
        assert model.transcribe(heard).tokens == original(Example(audio=heard)).tokens


@pytest.mark.filterwarnings("ignore")
def test_features_of_pictures_run(tmp_path):
    path = shutil.copytree(checkpoint("dinov2_features"), tmp_path / "seen")
    original = plan("dinov2_features").reference
    model = Dinov2Model.from_pretrained(path, attn_implementation="eager")
    _as_optimum_writes(path, model, {"pixel_values": torch.zeros(2, 3, 32, 32)}, ["last_hidden_state"])
    assert inspect(path).tasks[0] == "embed"
    export(path, tmp_path / "bundle", calibrate_on=[calibration_folder()])
    image = picture(50, 71)
    with Model(open_bundle(tmp_path / "bundle"), runtime="onnxruntime") as model:
        found = model.task("embed").image(image)
    wanted = original(Example(image=image)).values
    assert float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)) > 0.99999
    rewrite(path / "preprocessor_config.json", crop_size={"height": 24, "width": 24})
    with pytest.raises(CheckpointError, match=r"32 × 32 px, .* 24 × 24 px"):
        export(path, tmp_path / "other")


def test_openvinos_graphs_are_listed_and_refused(made, tmp_path):
    openvino.save_model(openvino.convert_model(made / "model.onnx"), made / "openvino_model.xml")
    (made / "model.onnx").unlink()
    found = inspect(made)
    assert (found.kind, found.maker) == ("graphs", "optimum-intel")
    (component,) = found.components
    assert component.bytes > 10_000
    assert any("pixel_values" in name for name in component.inputs)
    with pytest.raises(CheckpointError, match="optimum-intel"):
        export(made, tmp_path / "bundle")


def test_graphs_that_answer_together_are_listed_and_refused(made, tmp_path):
    (made / "model.onnx").rename(made / "encoder_model.onnx")
    shutil.copyfile(made / "encoder_model.onnx", made / "decoder_model_merged.onnx")
    assert [c.name for c in inspect(made).components] == ["decoder_model_merged", "encoder_model"]
    with pytest.raises(CheckpointError, match="answer only together"):
        export(made, tmp_path / "bundle")


def test_an_ir_with_entities_is_refused(made):
    (made / "model.onnx").unlink()
    (made / "openvino_model.xml").write_text('<!DOCTYPE net [<!ENTITY a "b">]><net>&a;</net>')
    with pytest.raises(CheckpointError, match="document type"):
        inspect(made)


def test_a_head_that_no_family_exports(tmp_path):
    path = shutil.copytree(checkpoint("whisper"), tmp_path / "heard")
    rewrite(path / "config.json", architectures=["WhisperForAudioClassification"])
    with pytest.raises(CheckpointError, match=r"WhisperForAudioClassification, for audio-classification"):
        export(path, tmp_path / "bundle")
    assert "WhisperForConditionalGeneration" in inspect(path).problems[0]
