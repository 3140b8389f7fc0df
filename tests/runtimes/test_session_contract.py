"""The `Session` contract on every runtime: names, shapes, types, kept values, cancelling."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.errors import BundleError, InputError, RuntimeUnavailable, UsageError
from edgemm.runtimes import registry
from edgemm.runtimes.base import (
    Decoder,
    DeviceValue,
    SessionOptions,
    StatePort,
    TensorPort,
    as_numpy,
    cast_to,
)
from tests.export.exported import EXACT, exported, plan
from tests.runtimes.pretend_gpu import CONTRACT, PRETENDED, module

_PRODUCTS, _WIDTH = 300, 256
# A GPU cannot be stopped: the call after waits for what was cancelled, here by the processor.
_LONG_ROWS = dict.fromkeys(PRETENDED, 6_000)


@pytest.fixture(scope="module", params=CONTRACT)
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def session(runtime):
    path = exported("moonshine").bundle / "graphs" / "audio_encoder.onnx"
    one = module(runtime).load_session(path, EXACT)
    yield one
    one.close()


@pytest.fixture(scope="module")
def sound():
    return np.random.default_rng(0).normal(0, 0.3, (2, 4000)).astype(np.float32)


def test_ports_are_the_manifests(session):
    entry = exported("moonshine").manifest.component("audio_encoder")
    assert list(session.inputs) == [t.name for t in entry.inputs]
    assert list(session.outputs) == [t.name for t in entry.outputs]
    assert session.inputs["input_values"].shape == (-1, -1)
    assert session.inputs["input_values"].dtype == np.float32


@pytest.mark.parametrize(
    ("feeds", "what"),
    [
        ({}, "lacks input_values"),
        ({"input_values": np.zeros((1, 4000), np.float32), "x": np.zeros(1)}, "does not know x"),
        ({"input_features": np.zeros((1, 4000), np.float32)}, "lacks input_values and does not know"),
        ({"input_values": np.zeros(4000, np.float32)}, r"takes \[-1, -1\]"),
        ({"input_values": np.zeros((1, 1, 4000), np.float32)}, r"takes \[-1, -1\]"),
        ({"input_values": np.zeros((1, 4000), np.int16)}, "takes float32, not int16"),
    ],
)
def test_wrong_feeds(session, feeds, what):
    with pytest.raises(InputError, match=what):
        session.run(feeds)


def test_a_fixed_dimension_must_match(runtime):
    path = exported("efficientnet").bundle / "graphs" / "model.onnx"
    one = module(runtime).load_session(path, EXACT)
    with pytest.raises(InputError, match=r"takes \[-1, 3, 64, 64\], not \[1, 3, 32, 64\]"):
        one.run({"pixel_values": np.zeros((1, 3, 32, 64), np.float32)})
    one.close()


def test_sound_that_is_too_short_is_an_input_error(session):
    with pytest.raises(InputError, match="could not run"):
        session.run({"input_values": np.zeros((1, 3), np.float32)})
    assert session.run({"input_values": np.ones((1, 4000), np.float32)})


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_floats_are_cast(session, sound, dtype):
    wide = session.run({"input_values": sound.astype(dtype)})
    plain = session.run({"input_values": sound.astype(dtype).astype(np.float32)})
    for name in wide:
        np.testing.assert_array_equal(as_numpy(wide[name]), as_numpy(plain[name]))


def test_strided_arrays_are_taken(session, sound):
    twice = np.repeat(sound, 2, axis=1)[:, ::2]
    assert not twice.flags["C_CONTIGUOUS"]
    found = session.run({"input_values": twice})["audio_features"]
    expected = session.run({"input_values": sound})["audio_features"]
    np.testing.assert_array_equal(as_numpy(found), as_numpy(expected))


def test_kept_values_outlive_the_next_run(session, sound):
    names = [n for n in session.outputs if n.startswith("cross.")]
    plain = session.run({"input_values": sound})
    kept = session.run({"input_values": sound}, keep=names)
    session.run({"input_values": sound[:1, :2000]})
    for name in names:
        assert isinstance(kept[name], DeviceValue)
        np.testing.assert_array_equal(as_numpy(kept[name]), as_numpy(plain[name]))
    assert isinstance(kept["audio_features"], np.ndarray)


def test_results_outlive_the_next_run(session, sound):
    first = as_numpy(session.run({"input_values": sound})["audio_features"])
    copy = first.copy()
    session.run({"input_values": sound[::-1]})
    np.testing.assert_array_equal(first, copy)


def _chain(path):
    """x [rows, 256] through 300 products: as long as one likes, with many nodes to stop between."""
    nodes = [helper.make_node("MatMul", [f"x{i or ''}", "w"], [f"x{i + 1}"]) for i in range(_PRODUCTS)]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(_WIDTH, _WIDTH)))[0].astype(np.float32)
    dims = ["rows", _WIDTH]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(f"x{_PRODUCTS}", TensorProto.FLOAT, dims)],
        [onnx.numpy_helper.from_array(turn, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


def test_cancel_from_another_thread(runtime, tmp_path):
    """The call ends long before its work is done, and the session is as good as before."""
    _chain(tmp_path / "chain.onnx")
    one = module(runtime).load_session(tmp_path / "chain.onnx", EXACT)
    rng = np.random.default_rng(1)
    short = {"x": rng.normal(size=(2, _WIDTH)).astype(np.float32)}
    before = one.run(short)
    canceller = threading.Timer(0.3, one.cancel)
    start = time.perf_counter()
    canceller.start()
    with pytest.raises(InputError, match="could not run"):
        one.run({"x": np.zeros((_LONG_ROWS.get(runtime, 40_000), _WIDTH), np.float32)})
    assert time.perf_counter() - start < 3.0
    canceller.join()
    for name, value in one.run(short).items():
        np.testing.assert_array_equal(as_numpy(value), as_numpy(before[name]))
    one.close()


@pytest.mark.parametrize("value", [3, -2])
def test_scalars_stay_scalars(runtime, tmp_path, value):
    """A graph that adds the rank of its input to it: a scalar that became a vector would be seen."""
    nodes = [
        helper.make_node("Shape", ["n"], ["shape"]),
        helper.make_node("Size", ["shape"], ["rank"]),
        helper.make_node("Add", ["n", "rank"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scalar",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("sum", TensorProto.INT64, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "scalar.onnx")
    one = module(runtime).load_session(tmp_path / "scalar.onnx", EXACT)
    found = as_numpy(one.run({"n": np.array(value, np.int64)})["sum"])
    assert (found.shape, int(found)) == ((), value)
    one.close()


def test_cancel_without_a_run_is_harmless(session, sound):
    session.cancel()
    assert session.run({"input_values": sound})


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a\x12"])
def test_a_torn_graph(runtime, tmp_path, content):
    (tmp_path / "torn.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot load torn\.onnx"):
        module(runtime).load_session(tmp_path / "torn.onnx", EXACT)


def test_states_that_the_graph_lacks(runtime):
    path = exported("moonshine").bundle / "graphs" / "decoder.onnx"
    states = (StatePort("past_key_values.9.key", "present.9.key", (-1, 2, -1, 16), 2),)
    with pytest.raises(BundleError, match=r"past_key_values\.9\.key"):
        module(runtime).load_decoder(path, states, 8, EXACT)


def test_masks_stay_finite_in_a_narrower_type():
    port = TensorPort("attention_bias", np.dtype(np.float16), (-1, 1, -1, -1))
    bias = np.array([0.0, np.finfo(np.float32).min, 1.5, 7e4], np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(cast_to(port, bias).ravel(), np.float16([0.0, -65504, 1.5, 65504]))


def test_names():
    assert registry.choose("auto", "decoder") == "onnxruntime"
    with pytest.raises(UsageError, match="tensorflow"):
        registry.choose("tensorflow", "decoder")


def test_a_runtime_that_is_not_installed(monkeypatch):
    absent = replace(registry.RUNTIMES["openvino"], package="no_such_package")
    monkeypatch.setitem(registry.RUNTIMES, "openvino", absent)
    with pytest.raises(RuntimeUnavailable, match=r"edgemm\[openvino\]"):
        registry.choose("openvino", "model")
    assert registry.choose("auto", "model") == "onnxruntime"


def test_thread_counts_do_not_change_results(runtime, sound):
    path = exported("moonshine").bundle / "graphs" / "audio_encoder.onnx"
    found = []
    for threads in (1, 2):
        options = SessionOptions(exact=True, threads=threads)
        one = module(runtime).load_session(path, options)
        found.append(as_numpy(one.run({"input_values": sound})["audio_features"]))
        one.close()
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_decoders_fulfil_the_protocol(runtime):
    loader = module(runtime)
    states = plan("moonshine").graphs[1].states
    ports = tuple(StatePort(s.input, s.output, (-1, 2, -1, 16), s.growth_axis) for s in states)
    decoder: Decoder = loader.load_decoder(exported("moonshine").bundle / "graphs" / "decoder.onnx", ports, 8, EXACT)
    assert decoder.length == 0
    decoder.cancel()
    decoder.close()


def test_a_stateless_graph_on_onnxruntime_keeps_no_plan_of_its_activations():
    path = exported("moonshine").bundle / "graphs" / "audio_encoder.onnx"
    one = registry.module("onnxruntime").load_session(path, EXACT)
    assert not one._session.get_session_options().enable_mem_pattern
    one.close()
