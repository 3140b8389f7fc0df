"""`edgemm distill --qat`: weights that are trained on the very grid on which export stores them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgemm.cli.app import invoke
from edgemm.errors import UsageError
from edgemm.export import families
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.pipeline import export
from edgemm.export.precision.grids import Grid
from edgemm.export.precision.rounding import compensated, factor_of, plain
from edgemm.export.precision.weights import quantize_blocks
from edgemm.export.train.data import Splits, load
from edgemm.export.train.distill import Teaching, distill
from edgemm.export.train.fake_quantization import Place, Rounding, on_grid
from edgemm.export.train.loop import prepared
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.distilled import Distilled
from edgemm.export.train.objectives.quantized import QuantizationAware
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.students import student_of
from edgemm.runtimes.base import SessionOptions, as_numpy
from edgemm.runtimes.onnxruntime import load_session
from tests import checkpoints
from tests.export.exported import calibration_folder, checkpoint
from tests.train import data_sets

STORED = SessionOptions(exact=True, int8_weights=True)
OPTIONS = TrainOptions(steps=3, batch=2, learning_rate=1e-3, max_new_tokens=4)


def matrix(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, columns)).astype(np.float32) * 10.0 ** rng.integers(-3, 2, columns)
    made[:32, 0] = 0.0
    made[0, 1] = -np.abs(made[:, 1]).max()  # -8 will be the largest
    return made.astype(np.float32)


def dequantized(rounded):
    grouped = rounded.values.reshape(-1, rounded.block, rounded.values.shape[1]).astype(np.float32)
    return (grouped * rounded.scales[:, None]).reshape(rounded.values.shape)


EXPORTS = {
    Grid(8, 64, search=False): quantize_blocks,
    Grid(8, 32, search=True): lambda m: plain(m, 32, 8),
    Grid(4, 32, search=True): lambda m: plain(m, 32, 4),
    Grid(4, 16, search=True): lambda m: plain(m, 16, 4),
    Grid(8, 192, search=True): lambda m: plain(m, 192, 8),
}


@pytest.mark.parametrize("grid", EXPORTS, ids=str)
def test_torch_rounds_as_export_does_and_what_lies_on_the_grid_stays(grid):
    before = matrix(192, 70)
    found = on_grid(torch.from_numpy(before), grid).numpy()
    np.testing.assert_allclose(found, dequantized(EXPORTS[grid](before)), rtol=3e-7)
    assert np.abs(found - before).max() > 0
    again = EXPORTS[grid](found)
    np.testing.assert_allclose(dequantized(again), found, rtol=3e-7)
    if grid.search:
        mixed = np.random.default_rng(1).standard_normal((500, 192)) @ np.random.default_rng(2).standard_normal(
            (192, 192)
        )
        seen = compensated(found, factor_of(mixed.T @ mixed), grid.block, grid.bits)
        np.testing.assert_allclose(dequantized(seen), found, rtol=3e-6)


def test_the_gradient_goes_straight_through():
    layer = nn.Linear(64, 80, bias=False)
    rounding = Rounding({"weight": Place(Grid(4, 32, search=True))})
    x = torch.randn(5, 64)
    rounding.call(layer, input=x).square().sum().backward()
    nearest = on_grid(layer.weight.detach().T, Grid(4, 32, search=True)).T.clone().requires_grad_(True)
    (x @ nearest.T).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, nearest.grad)
    latent = layer.weight.detach().clone()
    with rounding.in_place(layer):
        torch.testing.assert_close(layer.weight, nearest)
    assert torch.equal(layer.weight, latent)
    # What an optimizer moved is rounded again.
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with rounding.in_place(layer):
        assert not torch.allclose(layer.weight, nearest)


def data_for(name, place):
    return data_sets.tones(place) if name in ("moonshine", "whisper") else data_sets.colours(place, n=6)


def matrices(graph):
    """Every weight of a quantized graph by the name that it had: what its DequantizeLinear makes of it."""
    held = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if (
            node.op_type != "DequantizeLinear"
            or not node.output[0].endswith(".dequantized")
            or node.input[0] not in held
        ):
            continue
        values, scales = held[node.input[0]], held[node.input[1]]
        given = {a.name: a.i for a in node.attribute}
        axis, block = given.get("axis", 1), given.get("block_size", 0)
        if block:
            scales = np.repeat(scales, block, axis)
        elif scales.ndim:
            scales = scales.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        found[node.output[0].removesuffix(".dequantized")] = values * scales
    return found


# Nothing of these components is rounded but their weights.
CASES = [
    ("moonshine", "int4", ("decoder", "audio_encoder")),
    pytest.param("moonshine", "int8", ("decoder", "audio_encoder"), marks=pytest.mark.slow),
    ("smolvlm_tied", "int4", ("decoder",)),
    pytest.param("smolvlm", "int8", ("decoder",), marks=pytest.mark.slow),
    pytest.param("whisper", "int4", ("decoder",), marks=pytest.mark.slow),
    pytest.param("trocr", "int4", ("decoder",), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "precision", "roles"), CASES)
def test_what_is_exported_is_what_was_trained(name, precision, roles, tmp_path):
    data = data_for(name, tmp_path / "data")
    # Matrices of less than 4,096 weights are not rounded.
    teacher = checkpoints.moonshine(tmp_path / "wide", hidden=64) if name == "moonshine" else checkpoint(name)
    distill(teacher, data, tmp_path / "s", teaching=Teaching(qat=precision), options=OPTIONS)
    source = find_checkpoint(tmp_path / "s")
    assert source.json("quantization_aware.json")["precision"] == precision
    plan = families.find(source.model_type).plan(source)
    bundle = export(source.path, tmp_path / "b", precision=precision, calibrate_on=[calibration_folder()]).bundle
    whole = export(source.path, tmp_path / "whole").bundle
    for graph in plan.graphs:
        if graph.role not in roles:
            continue
        made = onnx.load(bundle / "graphs" / f"{graph.role}.onnx")
        before = {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(whole / "graphs" / f"{graph.role}.onnx").graph.initializer
        }
        stored = matrices(made)
        assert len(stored) > (4 if name == "moonshine" else 0)  # of most tiny decoders the head alone is large enough
        for weight, values in stored.items():
            np.testing.assert_allclose(values, before[weight], rtol=3e-6, atol=1e-9, err_msg=f"{graph.role}: {weight}")
        feeds = graph.feeds(graph.checks[-1], seed=1)
        session = load_session(bundle / "graphs" / f"{graph.role}.onnx", STORED)
        said = session.run({k: v.numpy() for k, v in feeds.items()})
        for output, expected in graph.run(feeds).items():
            # Convolutions of an encoder are stored in fp16.
            near = 5e-3 if graph.role == "audio_encoder" else 2e-4
            np.testing.assert_allclose(
                as_numpy(said[output]), expected, atol=near * np.abs(expected).max(), err_msg=output
            )


def test_static_weights_are_not_smoothed_off_their_grid(tmp_path):
    data = data_sets.colours(tmp_path / "data", n=6)
    distill(checkpoint("vit"), data, tmp_path / "s", teaching=Teaching(qat="int8"), options=OPTIONS)
    export(tmp_path / "s", tmp_path / "b", precision="int8", calibrate_on=[data])
    export(tmp_path / "s", tmp_path / "whole")
    graphs = [onnx.load(tmp_path / b / "graphs" / "model.onnx") for b in ("b", "whole")]
    before = {t.name: numpy_helper.to_array(t) for t in graphs[1].graph.initializer}
    stored = matrices(graphs[0])
    assert len(stored) > 8
    for weight, values in stored.items():
        np.testing.assert_allclose(values, before[weight], rtol=3e-6, atol=1e-9, err_msg=weight)


def test_training_on_the_grid_comes_nearer_to_the_teacher(tmp_path):
    rows = load(data_sets.tones(tmp_path / "data")).train[:4]
    splits = Splits(rows, rows, rows)
    options = TrainOptions(
        steps=40, batch=4, learning_rate=1e-4, warmup=0.2, weight_decay=0.0, metric="loss", evaluate_every=40
    )
    source = find_checkpoint(checkpoint("moonshine"))
    objective = registry.find(source, None).load(source, splits, options)
    teacher, objective.model = objective.model, student_of(objective.model, "same")
    lesson = QuantizationAware(Distilled(objective, teacher, hard=0.0, temperature=1.0), "int4")
    part = objective.batch(list(rows), training=False)["parts"][0]

    def distance():
        objective.model.eval()
        with torch.no_grad():
            return float(lesson.loss_of(objective.model, part))

    before = distance()
    prepared(lesson, objective.model, splits, options, tmp_path / "run").go()
    assert distance() < 0.6 * before


def test_which_parameters_are_rounded_and_how(tmp_path):
    rows = load(data_sets.tones(tmp_path / "data")).train[:2]
    source = find_checkpoint(checkpoints.moonshine(tmp_path / "wide", hidden=64))
    objective = registry.find(source, None).load(source, Splits(rows, rows, rows), OPTIONS)
    places = QuantizationAware(objective, "int4").rounding.places
    bits = {name: place.grid.bits for name, place in places.items()}
    linear = {n for n, m in objective.model.named_modules() if isinstance(m, nn.Linear) and m.weight.numel() >= 4096}
    encoder = {f"{n}.weight" for n in linear if n.startswith("model.encoder")}
    assert len(encoder) >= 8
    assert encoder <= bits.keys()
    four = {n for n, b in bits.items() if b == 4}
    # Keys and values of the sound are made by the encoder's graph.
    own = {
        n
        for n in bits
        if n.startswith("model.decoder.layers") and not n.endswith(("attn.k_proj.weight", "attn.v_proj.weight"))
    }
    assert own
    assert own <= four
    assert all(n.startswith("model.decoder.layers") for n in four)
    assert "model.decoder.embed_tokens.weight" in bits.keys() - four
    assert not any("norm" in n or "conv" in n for n in bits)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [("vit", {"lora": 2}, "adapters"), ("clip", {}, "cannot be trained for int8")],
)
def test_what_cannot_be_trained_so_is_refused(name, more, message, tmp_path):
    data = data_sets.colours(tmp_path / "data", n=6)
    options = TrainOptions(steps=2, batch=2, **more)
    with pytest.raises(UsageError, match=message):
        distill(checkpoint(name), data, tmp_path / "s", teaching=Teaching(qat="int8"), options=options)


def test_the_command_line(tmp_path, capsys):
    data = data_sets.colours(tmp_path / "data", n=6)
    argv = ["distill", str(checkpoint("vit")), "--data", str(data), "-o", str(tmp_path / "s"), "--steps", "2"]
    assert invoke([*argv, "--batch", "2", "--qat", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert invoke([*argv, "--qat", "int2"]) == 2
    # A checkpoint that is trained on without it is none of these any more.
    argv = ["finetune", str(tmp_path / "s"), "--data", str(data), "-o", str(tmp_path / "t"), "--steps", "1"]
    assert invoke([*argv, "--batch", "2"]) == 0
    assert not (tmp_path / "t" / "quantization_aware.json").exists()
