"""Compiled models that are kept: what fits is read; whatever else lies there gives neither crash nor answer."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from edgemm.bundle.files import cache_dir, sha256_of
from edgemm.errors import BundleError, RuntimeUnavailable
from edgemm.runtimes import openvino, openvino_blobs
from edgemm.runtimes.base import SessionOptions
from tests.export.exported import EXACT
from tests.runtimes.lowering_decoders import written


@pytest.fixture
def graph(tmp_path, monkeypatch):
    """A decoder of its own in something like a bundle, whose every compiled model is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino_blobs, "WORTH_S", 0.0)
    path, states = written("grouped", "int8")
    shutil.copytree(path.parent, tmp_path / "bundle" / "graphs")
    (tmp_path / "bundle" / "edgemm.json").write_text("{}")
    return tmp_path / "bundle" / "graphs" / path.name, states


@pytest.fixture
def compiled(monkeypatch):
    """How often something was compiled."""
    count = []
    original = openvino._compile
    monkeypatch.setattr(openvino, "_compile", lambda *a: count.append(1) or original(*a))
    return count


def answer(graph, options=EXACT):
    path, states = graph
    embeds = np.random.default_rng(0).normal(0, 1, (1, 6, 128)).astype(np.float32)
    decoder = openvino.load_decoder(path, states, 64, options)
    assert decoder.form == "lowered"
    logits = np.concatenate([decoder.prefill(embeds[:, :5])[:, -1], decoder.step(embeds[:, 5:])])
    return logits


def blob():
    (path,) = cache_dir("openvino").glob("*.engine")
    return path


def note_of(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_second_load_compiles_nothing(graph, compiled):
    first = answer(graph)
    assert len(compiled) == 1
    np.testing.assert_array_equal(answer(graph), first)
    assert len(compiled) == 1
    note = note_of(blob())
    assert (note["engine"]["target"], note["engine"]["gpu"]) == ("openvino", ["CPU"])


def torn(path):
    path.write_bytes(path.read_bytes()[:1000])


def empty(path):
    path.write_bytes(b"")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def older(path):
    note = note_of(path)
    note["engine"]["builder"] = "openvino 2020.1.0"
    path.with_suffix(".json").write_text(json.dumps(note))


def of_another_graph(path):
    note = note_of(path)
    note["engine"]["options_sha256"] = "0" * 64
    path.with_suffix(".json").write_text(json.dumps(note))


def without_note(path):
    path.with_suffix(".json").unlink()


def with_half_a_note(path):
    path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:50])


def of_another_program(path):
    """Whole by its note, but nothing that OpenVINO reads."""
    path.write_bytes(b"\x7fELF" + bytes(5000))
    note = note_of(path)
    note["engine"] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    path.with_suffix(".json").write_text(json.dumps(note))


@pytest.mark.parametrize(
    "spoil",
    [torn, empty, flipped, older, of_another_graph, without_note, with_half_a_note, of_another_program],
    ids=lambda f: f.__name__,
)
def test_what_does_not_fit_is_compiled_again(graph, compiled, spoil):
    first = answer(graph)
    spoil(blob())
    np.testing.assert_array_equal(answer(graph), first)
    assert len(compiled) == 2
    answer(graph)
    assert len(compiled) == 2, "the rebuilt blob is not used"


@pytest.mark.parametrize("options", [dataclasses.replace(EXACT, threads=1), SessionOptions(exact=False)])
def test_other_options_have_a_blob_of_their_own(graph, compiled, options):
    answer(graph)
    answer(graph, options)
    assert len(compiled) == 2
    assert len(list(cache_dir("openvino").glob("*.engine"))) == 2


def test_other_weights_have_a_blob_of_their_own(graph, compiled):
    first = answer(graph)
    weights = max(graph[0].parent.rglob("*.data"), key=lambda p: p.stat().st_size)
    data = np.fromfile(weights, np.int8)
    np.clip(data, -60, 60).tofile(weights)
    assert not np.array_equal(answer(graph), first)
    assert len(compiled) == 2


def test_a_blob_of_the_bundle_is_used(graph, compiled):
    first = answer(graph)
    folder = graph[0].parent.parent / "engines"
    folder.mkdir()
    for path in cache_dir("openvino").glob("*.*"):
        shutil.move(path, folder / path.name)
    np.testing.assert_array_equal(answer(graph), first)
    assert len(compiled) == 1


def test_a_spoilt_blob_of_the_bundle_is_made_anew(graph, compiled, monkeypatch):
    first = answer(graph)
    folder = graph[0].parent.parent / "engines"
    shutil.move(cache_dir("openvino"), folder)
    (spoilt,) = folder.glob("*.engine")
    flipped(spoilt)
    monkeypatch.setattr(openvino_blobs, "WORTH_S", 1e9)
    np.testing.assert_array_equal(answer(graph), first)
    np.testing.assert_array_equal(answer(graph), first)
    assert len(compiled) == 2, "the new one, in the cache, is not used"


def test_a_graph_outside_a_bundle_is_not_kept(graph):
    (graph[0].parent.parent / "edgemm.json").unlink()
    answer(graph)
    assert not list(cache_dir("openvino").glob("*"))


def test_the_cache_has_a_bound(graph, monkeypatch):
    answer(graph)
    monkeypatch.setattr(openvino_blobs, "LIMIT_BYTES", blob().stat().st_size + 1000)
    answer(graph, dataclasses.replace(EXACT, threads=1))
    assert note_of(blob())["engine"]["bytes"] == blob().stat().st_size


def test_a_cache_that_cannot_be_written(graph, compiled, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    answer(graph)
    assert len(compiled) == 1


def test_a_device_that_is_not_here(graph):
    with pytest.raises(RuntimeUnavailable, match=r"no device GPU\.7; it sees CPU"):
        openvino.load_session(graph[0], SessionOptions(device="GPU.7"))


def test_a_device_that_openvino_chooses(graph):
    first = answer(graph)
    np.testing.assert_allclose(answer(graph, SessionOptions(device="AUTO")), first, atol=1e-4 * np.abs(first).max())


def test_a_growing_decoder_is_refused_for_an_npu(graph):
    with pytest.raises(BundleError, match="fixed shapes"):
        openvino.load_decoder(*graph, 64, SessionOptions(device="NPU"))


def test_fixed_shapes(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("x", "y")]
    made = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", value[:1], value[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    session = openvino.load_session(tmp_path / "m.onnx", SessionOptions(shapes=(("x", (2, 3)),)))
    assert session.inputs["x"].shape == (2, 3)
    found = session.run({"x": -np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.ones((2, 3)))
