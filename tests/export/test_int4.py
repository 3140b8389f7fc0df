"""int4 decoders: how they are rounded, what is stored, and that every runtime reads the same numbers."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from transformers import AutoModelForImageTextToText

from edgemm.bundle.opening import open_bundle
from edgemm.export.pipeline import export
from edgemm.export.precision.compensation import sites
from edgemm.export.precision.gates import AccuracyGate, Gates
from edgemm.export.precision.int4 import quantize_int4
from edgemm.export.precision.rounding import block_of, factor_of, plain
from edgemm.export.precision.rounding import compensated as by_factor
from edgemm.measure.building import build
from edgemm.measure.inspection import inspect
from edgemm.model import Model
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions, as_numpy
from tests.export.exported import EXACT, RUNTIMES, calibration_folder, checkpoint, exported, model, picture, plan

INPUTS, OUTPUTS, BLOCK = 192, 96, 32
STORED = SessionOptions(exact=True, int8_weights=True)
# The cheap tier has a decoder with its own table and one that shares it; encoder–decoders are dearer to export.
NAMES = ("smolvlm", "smolvlm_tied", pytest.param("moonshine", marks=pytest.mark.slow))


def compensated(matrix, moments, block):
    return by_factor(matrix, factor_of(moments), block)


def dequantized(rounded):
    grouped = rounded.values.reshape(-1, rounded.block, rounded.values.shape[1])
    return (grouped * rounded.scales[:, None]).reshape(rounded.values.shape)


def activations(rows, seed):
    """What trained networks have and Gaussian ones lack: channels that go together, and a few that are large."""
    mix = np.random.default_rng(0).standard_normal((24, INPUTS))
    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((rows, 24)) @ mix + 0.3 * rng.standard_normal((rows, INPUTS))
    seen[:, ::37] *= 20
    return seen.astype(np.float32)


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(5).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)


def lost(matrix, rounded, seen):
    return np.linalg.norm(seen @ (dequantized(rounded) - matrix)) / np.linalg.norm(seen @ matrix)


def test_rounding_by_activations_loses_less_on_others_of_the_kind(matrix):
    seen, others = activations(2000, seed=1), activations(2000, seed=2)
    nearest = lost(matrix, plain(matrix, BLOCK), others)
    assert lost(matrix, compensated(matrix, seen.T @ seen, BLOCK), others) < 0.4 * nearest


def test_few_activations_do_no_harm(matrix):
    """Fewer rows than inputs: the moments are singular."""
    seen, others = activations(20, seed=1), activations(2000, seed=2)
    nearest = lost(matrix, plain(matrix, BLOCK), others)
    assert lost(matrix, compensated(matrix, seen.T @ seen, BLOCK), others) < nearest
    untouched = compensated(matrix, np.zeros((INPUTS, INPUTS), np.float32), BLOCK)
    np.testing.assert_array_equal(untouched.values, plain(matrix, BLOCK).values)


def test_steps_of_least_squared_error_lose_less_than_the_largest_weight_s(matrix):
    grouped = matrix.reshape(-1, BLOCK, OUTPUTS)
    steps = np.abs(grouped).max(1, keepdims=True) / 7
    reach = np.linalg.norm(np.rint(grouped / steps) * steps - grouped)
    assert np.linalg.norm(dequantized(plain(matrix, BLOCK)) - matrix) < 0.95 * reach


def test_rounded_values_are_int4_and_a_matrix_of_zeros_stays_one(matrix):
    for rounded in (plain(matrix, BLOCK), compensated(matrix, np.eye(INPUTS), BLOCK)):
        assert rounded.values.min() >= -8
        assert rounded.values.max() <= 7
        assert rounded.scales.min() > 0
    assert not plain(0 * matrix, BLOCK).values.any()
    assert (block_of(576), block_of(48), block_of(100)) == (32, 16, None)


def decoder_graph(name, precision):
    bundle = exported(name, precision).bundle
    return onnx.load(bundle / "graphs" / "decoder.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored(name):
    manifest = exported(name, "int4").manifest
    precisions = {c.name: c.precision for c in manifest.components}
    assert precisions.pop("decoder") == "int4"
    assert set(precisions.values()) == {"int8"}
    assert "GPTQ" in manifest.quantization.recipe["decoder"]
    assert manifest.quantization.calibration["decoder"].n > 0
    halves = {t.name for t in decoder_graph(name, "int4").graph.initializer if t.data_type == TensorProto.INT4}
    wanted = sites(decoder_graph(name, "fp32"))
    assert halves == {f"{s.weight}.int4" for s in wanted}
    assert len(halves) >= 3 * 2  # two layers; the smallest matrices stay as they are
    assert not list(exported(name, "int4").bundle.rglob("*probe*"))


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_int8_and_a_tied_table_stored_once(name):
    """As with --int8: the embedding's graph is as small."""
    heads = []
    for precision in ("int8", "int4"):
        graph = decoder_graph(name, precision).graph
        weights = {t.name: t for t in graph.initializer}
        vocabulary = graph.output[0].type.tensor_type.shape.dim[2].dim_value
        found = [t for t in weights.values() if t.data_type == TensorProto.INT8 and t.dims[1] == vocabulary]
        heads.append([numpy_helper.to_array(t) for t in found])
    np.testing.assert_array_equal(*heads)
    assert len(heads[0]) == 1
    sizes = [{c.name: c.bytes for c in exported(name, p).manifest.components} for p in ("int8", "int4")]
    assert abs(sizes[0]["embed_tokens"] - sizes[1]["embed_tokens"]) <= 16  # digits of offsets
    assert sizes[1]["decoder"] < sizes[0]["decoder"]


def feeds_of(name):
    (graph,) = [g for g in plan(name).graphs if g.role == "decoder"]
    return {k: v.numpy() for k, v in graph.feeds(graph.checks[-1], seed=3).items()}


@pytest.mark.parametrize("name", NAMES)
def test_runtimes_read_the_same_numbers(name):
    path = exported(name, "int4").bundle / "graphs" / "decoder.onnx"
    logits = []
    for runtime in RUNTIMES:
        session = registry.module(runtime).load_session(path, STORED)
        logits.append(as_numpy(session.run(feeds_of(name))["logits"]))
        session.close()
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4 * np.abs(logits[0]).max())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_answers_are_made(runtime):
    whole, four = (model("smolvlm", runtime, p) for p in ("fp32", "int4"))
    a, b = (m.task("answer").logits([picture(40, 70)], "What?").astype(np.float64) for m in (whole, four))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.9
    assert four.answer(picture(40, 70), "What?", max_new_tokens=8).tokens


def test_without_examples_it_is_rounded_to_the_nearest():
    graph = decoder_graph("smolvlm", "fp32")
    weights = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    stored = {t.name: t for t in quantize_int4(graph).graph.initializer}
    for site in sites(graph):
        values = numpy_helper.to_array(stored[f"{site.weight}.int4"]).astype(np.int8)
        np.testing.assert_array_equal(values, plain(weights[site.weight], site.block).values)


@pytest.mark.slow
def test_without_examples_the_manifest_says_so(tmp_path):
    manifest = export(checkpoint("moonshine"), tmp_path / "bundle", precision="int4").manifest
    assert "no examples" in manifest.quantization.recipe["decoder"]
    assert "decoder" not in manifest.quantization.calibration


@pytest.mark.parametrize("name", NAMES)
def test_the_size_is_the_one_that_inspect_guessed(name):
    """Weights alone: a tiny graph's nodes are as large."""
    files = exported(name, "int4").manifest.files
    made = sum(e.bytes for path, e in files.items() if path.endswith(".data"))
    assert inspect(checkpoint(name)).bytes_per_precision["int4"] == pytest.approx(made, rel=0.15)


def test_engines_are_built_where_there_is_no_gpu(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    bundle = shutil.copytree(exported("smolvlm", "int4").bundle, tmp_path / "bundle")
    made = build(open_bundle(bundle), "tensorrt-rtx", ("sm86", "sm89", "sm120"), (), lambda _what, _share: None)
    assert made.refused == {}
    assert {n.engine.component for n in made.notes} == set(exported("smolvlm").manifest.models[0].components)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A checkpoint with one matrix that int4 cannot hold, and whose numbers in fp32 are what they were without.

    In every block of it each output has a large weight on a value that is never anything but 0.
    """
    path = tmp_path_factory.mktemp("spoilt") / "checkpoint"
    shutil.copytree(checkpoint("smolvlm"), path)
    network = AutoModelForImageTextToText.from_pretrained(path)
    mlp = network.model.text_model.layers[0].mlp
    with torch.no_grad():
        mlp.up_proj.weight[::16] = 0.0
        mlp.down_proj.weight[:, ::16] = 12 * mlp.down_proj.weight.abs().max()
    network.save_pretrained(path)
    return path


def likeness(whole):
    """A metric: how like those of the fp32 bundle `whole` the logits are, in percent."""

    def logits(bundle):
        with Model(open_bundle(bundle), runtime="onnxruntime", options=EXACT) as one:
            return one.task("answer").logits([picture(40, 70)], "What?").astype(np.float64)

    wanted = logits(whole)

    def measure(bundle):
        found = logits(bundle)
        return {"likeness": 100 * float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted))}

    return measure


def test_the_gate_restores_the_matrix_that_int4_cannot_hold(spoilt, tmp_path):
    whole = export(spoilt, tmp_path / "whole").bundle
    gate = AccuracyGate(likeness(whole), lambda a, b: ("likeness", a["likeness"] - b["likeness"]), 3.0, 1)
    made = export(
        spoilt, tmp_path / "four", precision="int4", calibrate_on=[calibration_folder()], gates=Gates(accuracy=gate)
    )
    (note,) = made.manifest.quantization.restored
    assert "mlp.down_proj" in note.node
    assert note.component == "decoder"
    assert "weights in int8" in note.reason
    graph = onnx.load(made.bundle / "graphs" / "decoder.onnx").graph
    stored = {t.name: t.data_type for t in graph.initializer}
    makers = {n.output[0]: n for n in graph.node}
    (product,) = [n for n in graph.node if n.name == note.node]
    assert stored[makers[product.input[1]].input[0]] == TensorProto.INT8
    assert list(stored.values()).count(TensorProto.INT4) == len(sites(decoder_graph("smolvlm", "fp32"))) - 1
