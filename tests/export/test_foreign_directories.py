"""Directories under optimum's file names: what becomes a bundle, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckpointError
from edgemm.export.graph import trace
from edgemm.export.pipeline import export
from edgemm.measure.inspection import inspect
from edgemm.model import Model
from tests.export.exported import checkpoint, picture, plan, rewrite


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
    from edgemm.export.model_plan import Example

    wanted = plan("vit").reference(Example(image=image)).probabilities
    with Model(open_bundle(tmp_path / "bundle"), runtime="onnxruntime") as model:
        np.testing.assert_allclose(model.task("classify").probabilities(image), wanted, atol=1e-5)
    with pytest.raises(CheckpointError, match="in its own precision"):
        export(made, tmp_path / "half", precision="fp16")


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
