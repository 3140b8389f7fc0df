"""The gates: a layer that int8 cannot hold is found and restored, what cannot be mended is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from edgemm.bundle.manifest import SpeedCheck
from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckFailed, InputError
from edgemm.export.pipeline import export
from edgemm.export.precision import gated, sensitivity
from edgemm.export.precision.gates import AS_USUAL, NO_GATES, AccuracyGate, Choice, Gates, SpeedGate, Workshop, settle
from edgemm.export.precision.ranges import METHODS, clip_limits
from edgemm.export.precision.recipe import Recipe
from edgemm.export.precision.sensitivity import Noise
from edgemm.export.precision.static import quantize_static_int8, smoothed
from edgemm.measure.judging import gates
from edgemm.measure.report_page import about
from tests.export.exported import calibration_folder, checkpoint, exported, plan
from tests.export.planted import LAYER, labelled, planted


def int8(target: Path, asked: Gates = NO_GATES, choice: Choice = AS_USUAL):
    return export(planted(), target, precision="int8", calibrate_on=[calibration_folder()], gates=asked, choice=choice)


def test_without_a_gate_the_planted_layer_is_restored(tmp_path):
    manifest = int8(tmp_path / "bundle").manifest
    (note,) = manifest.quantization.restored
    assert LAYER in note.node
    assert "dB" in note.reason
    assert manifest.checks.gate is None


def test_what_is_too_loud_and_not_restored_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(gated, "LOUD_DB", -np.inf)
    with pytest.raises(CheckFailed, match="differs from the original") as refused:
        int8(tmp_path / "bundle")
    assert "--data" in refused.value.hint


def test_exactly_the_planted_layer_is_restored(tmp_path):
    manifest = int8(tmp_path / "bundle", gates(data=labelled(), max_drop=1.0)).manifest
    (note,) = manifest.quantization.restored
    assert LAYER in note.node
    assert note.component == "model"
    assert "dB" in note.reason
    gate = manifest.checks.gate
    assert gate is not None
    assert (gate.metric, gate.before, gate.max_drop) == ("top1", 100.0, 1.0)
    assert gate.before - gate.after <= 1.0
    opened = open_bundle(tmp_path / "bundle")
    assert opened.manifest == manifest
    assert not list((tmp_path / "bundle").glob(".*")), "no trial is left"
    _check_report(tmp_path / "bundle", manifest)


def _check_report(bundle, manifest):
    assert {"report/precision.json", "report/precision.svg"} <= set(manifest.files)
    report = json.loads((bundle / "report" / "precision.json").read_text())
    assert [o["node"] for o in report["operators"] if o["restored"]] == [manifest.quantization.restored[0].node]
    assert report["gate"]["after"] == manifest.checks.gate.after
    assert report["tried"][0]["drop"] > 1.0 >= report["tried"][-1]["drop"]
    drawn = ElementTree.parse(bundle / "report" / "precision.svg")
    bars = drawn.findall("{http://www.w3.org/2000/svg}g")
    assert len(bars) == len(report["operators"]) == 14
    assert LAYER in "".join(bars[0].itertext())
    page = about(open_bundle(bundle))["parity"]
    assert base64.b64encode((bundle / "report" / "precision.svg").read_bytes()).decode() in page
    assert "data:image/svg+xml" in page
    assert LAYER in page


def test_what_no_restoring_mends_is_refused_with_a_table(tmp_path):
    asked = gates(data=labelled())
    accuracy = asked.accuracy
    impossible = AccuracyGate(accuracy.measure, lambda before, after: ("top1", 50.0), 1.0, accuracy.n)
    with pytest.raises(CheckFailed, match=r"50\.00 points worse") as refused:
        int8(tmp_path / "bundle", Gates(impossible))
    first = refused.value.details.splitlines()[1]
    assert LAYER in first
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_fp16_is_measured_and_has_nothing_to_restore(tmp_path):
    asked = gates(data=labelled(), max_drop=0.0)
    manifest = export(planted(), tmp_path / "half", precision="fp16", gates=asked).manifest
    assert manifest.checks.gate is not None
    assert manifest.checks.gate.after == 100.0
    asked = Gates(AccuracyGate(asked.accuracy.measure, lambda before, after: ("top1", 2.0), 1.0, 1))
    with pytest.raises(CheckFailed):
        export(planted(), tmp_path / "worse", precision="fp16", gates=asked)


def test_a_data_set_without_labels_is_refused_before_any_work(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(InputError, match="line 1 has neither"):
        gates(data=tmp_path)


class Fake:
    """Twelve operators; the metric holds where `needed` are among the restored."""

    def __init__(self, needed, way=None):
        self.needed, self.way = frozenset(needed), way
        self.order = [Noise("model", f"n{i}", "MatMul", float(i)) for i in range(12)]
        self.made: list[Choice] = []

    def settle(self, start=AS_USUAL, *, static=True):
        workshop = Workshop(self._make, lambda choice: self.order, lambda what: None)
        gate = AccuracyGate(self._measure, lambda a, b: ("top1", a["top1"] - b["top1"]), 1.0, 100)
        return settle(gate, workshop, Path("whole"), start, static=static)

    def _make(self, choice):
        self.made.append(choice)
        return Path("trial")

    def _measure(self, bundle):
        if bundle.name == "whole":
            return {"top1": 90.0}
        choice = self.made[-1]
        lacking = len(self.needed - {n.node for n in choice.restored})
        if self.way is not None and (choice.smooth, choice.method) == self.way:
            lacking = 0
        return {"top1": 90.0 - 5.0 * lacking - (choice.method != "mse")}


@pytest.mark.parametrize("last", range(11))
def test_the_shortest_list_that_holds_is_restored(last):
    settled = Fake([f"n{last}"]).settle()
    assert [n.node for n in settled.trial.choice.restored] == [f"n{i}" for i in range(last + 1)]
    assert len(settled.tried) <= 5 + 8


def test_a_bundle_with_nothing_left_in_int8_is_none():
    with pytest.raises(CheckFailed, match="with 11 of 12"):
        Fake(["n11"]).settle()


def test_other_ways_come_before_restoring():
    fake = Fake(["n3"], way=(False, "mse"))
    settled = fake.settle()
    assert not settled.trial.choice.restored
    assert not settled.trial.choice.smooth
    ways = [(c.smooth, c.method) for c in fake.made]
    assert set(ways) == {(True, m) for m in METHODS} | {(False, "mse")}


def test_a_way_that_was_asked_for_stays():
    settled = Fake(["n0"]).settle(Choice(method="max", alternatives=False))
    assert {t.choice.method for t in settled.tried} == {"max"}


def test_what_holds_at_once_is_measured_once():
    assert len(Fake([]).settle().tried) == 1


@pytest.mark.parametrize("which", [0, -1])
def test_the_noise_of_an_operator_is_its_own(which):
    """Against a graph in which that operator alone is quantized, run on its own."""
    model, feeds = onnx.load(exported("vit").bundle / "graphs" / "model.onnx"), _feeds("vit")
    base = smoothed(model, feeds, Recipe())
    found = sensitivity.noises("model", base, quantize_static_int8(model, feeds), feeds)
    assert len(found) == 14
    assert [n.output_db for n in found] == sorted(n.output_db for n in found)
    this = found[which]
    others = frozenset(n.node for n in found if n is not this)
    sole = _exact(quantize_static_int8(model, feeds, recipe=Recipe(restored=others)), base)
    own = next(n.output[0] for n in model.graph.node if n.name == this.node)
    for output, ratio in ((own, this.sqnr_db), (model.graph.output[0].name, this.output_db)):
        assert ratio == pytest.approx(_ratio_db(base, sole, output, feeds), abs=0.3)


def test_what_there_is_no_time_for_comes_last():
    model, feeds = onnx.load(exported("vit").bundle / "graphs" / "model.onnx"), _feeds("vit")
    quantized = quantize_static_int8(model, feeds)
    found = sensitivity.noises("model", smoothed(model, feeds, Recipe()), quantized, feeds, enough_s=-1.0)
    assert {n.output_db for n in found} == {None}
    assert [n.sqnr_db for n in found] == sorted(n.sqnr_db for n in found)


def _exact(quantized, base):
    """`quantized` with the fp16 weights of what it restores in fp32 again."""
    whole = {t.name: t for t in base.graph.initializer}
    for node in [n for n in quantized.graph.node if n.op_type == "Cast" and n.input[0].endswith(".fp16")]:
        quantized.graph.initializer.append(whole[node.input[0].removesuffix(".fp16")])
        quantized.graph.initializer[-1].name = node.output[0]
        quantized.graph.node.remove(node)
    return quantized


def _ratio_db(base, sole, output, feeds):
    import onnxruntime

    sessions = []
    for graph in (base, sole):
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        if output not in {o.name for o in graph.graph.output}:
            probe.graph.output.add().name = output
        sessions.append(onnxruntime.InferenceSession(probe.SerializeToString()))
    pairs = [[s.run([output], feed)[0].astype(np.float64) for s in sessions] for feed in feeds]
    signal, noise = sum((a**2).sum() for a, _ in pairs), sum(((a - b) ** 2).sum() for a, b in pairs)
    return 10 * np.log10(signal / noise)


def _feeds(name):
    from edgemm.export.precision.calibration import load_examples

    examples = [e for e in load_examples([calibration_folder()]) if e.image is not None]
    return [plan(name).feeds(e)["model"] for e in examples]


def _passing(values):
    """A graph that passes its input on, and the example that gives it `values`."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in ("x", "y")]
    same = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([same], "passing", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), [{"x": values.astype(np.float32)}]


def test_ranges_of_each_method():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(100_000), [40.0]])
    model, feeds = _passing(values)
    limits = {m: clip_limits(model, ["x"], feeds, m)["x"] for m in METHODS}
    assert limits["max"] == pytest.approx(40.0)
    assert limits["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=0.02)
    assert 3.0 < limits["entropy"] < 15.0
    for method in ("mse", "percentile", "entropy"):
        assert limits[method] < limits["max"]
    errors = {
        m: np.mean((np.clip(np.rint(values / (t / 127)), -127, 127) * t / 127 - values) ** 2) for m, t in limits.items()
    }
    assert min(errors, key=errors.get) == "mse"


def test_the_methods_reach_the_graph():
    model, feeds = onnx.load(exported("vit").bundle / "graphs" / "model.onnx"), _feeds("vit")
    graphs = {m: quantize_static_int8(model, feeds, recipe=Recipe(method=m)) for m in METHODS}
    scales = {
        m: [
            onnx.numpy_helper.to_array(t).item()
            for t in g.graph.initializer
            if t.name.endswith(".scale") and not t.dims
        ]
        for m, g in graphs.items()
    }
    assert all(a <= b + 1e-9 for a, b in zip(scales["mse"], scales["max"], strict=True))
    assert len({tuple(s) for s in scales.values()}) >= 3


def _speed(low, judged=True):
    return SpeedCheck(
        component="model", runtime="onnxruntime", before_ms=2, after_ms=1, ratio=low + 0.1, low=low, judged=judged
    )


@pytest.mark.parametrize(("found", "allow", "holds"), [(1.2, False, True), (1.0, False, False), (1.0, True, True)])
def test_the_speed_gate(found, allow, holds, tmp_path):
    asked = Gates(speed=SpeedGate(lambda whole, quantized: [_speed(found), _speed(0.2, judged=False)], 1.05, allow))

    def run():
        return export(
            checkpoint("vit"), tmp_path / "bundle", precision="int8", calibrate_on=[calibration_folder()], gates=asked
        )

    if holds:
        assert [s.low for s in run().manifest.checks.speed] == [found, 0.2]
        return
    with pytest.raises(CheckFailed, match=r"not 1\.05 times as fast"):
        run()
    assert not list(tmp_path.iterdir())
