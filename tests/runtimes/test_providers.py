"""ONNX Runtime's execution providers: what is asked of it, and what happens where it has none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgemm.errors import RuntimeUnavailable, UsageError
from edgemm.runtimes import onnxruntime, openvino, providers, registry
from edgemm.runtimes.base import SessionOptions
from edgemm.runtimes.providers import PROVIDERS

ELSEWHERE = [p for p in PROVIDERS.values() if p.name not in ort.get_available_providers()]


@pytest.fixture
def graph(tmp_path):
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("x", "y")]
    made = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", value[:1], value[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_onnxruntime_knows_every_name():
    assert {p.name for p in PROVIDERS.values()} <= {*_all_names(), "NvTensorRTRTXExecutionProvider"}
    assert set(providers.DEVICES) <= set(registry.RUNTIMES)


def _all_names():
    from onnxruntime.capi import onnxruntime_pybind11_state

    return onnxruntime_pybind11_state.get_all_providers()


@pytest.mark.parametrize("provider", ELSEWHERE, ids=lambda p: p.device)
def test_a_provider_that_is_not_built_in(graph, provider):
    with pytest.raises(RuntimeUnavailable, match=provider.name) as raised:
        onnxruntime.load_session(graph, SessionOptions(device=provider.device))
    assert raised.value.hint == f"run: {provider.install}"


def test_a_provider_that_falls_back_to_the_cpu(graph, monkeypatch):
    """onnxruntime-gpu on a machine without CUDA: a warning, and a session on the CPU."""
    names = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    asked = []

    class Session(ort.InferenceSession):
        def __init__(self, path, options, providers):
            asked.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    fake = SimpleNamespace(**{k: getattr(ort, k) for k in ("SessionOptions", "__version__")})
    fake.InferenceSession, fake.get_available_providers = Session, lambda: names
    monkeypatch.setattr(onnxruntime, "_ort", lambda: fake)
    with pytest.raises(RuntimeUnavailable, match="would run on the CPU") as raised:
        onnxruntime.load_session(graph, SessionOptions(device="CUDA"))
    assert "onnxruntime-gpu" in raised.value.hint
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def test_a_provider_that_takes_no_node(graph):
    """As a session of ONNX Runtime itself tells it: this one gave all nodes to the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry(providers.RECORD_KEY, "1")
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    assert providers._assigned(session) == {"CPUExecutionProvider"}
    listing = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=session.get_provider_graph_assignment_info,
    )
    with pytest.raises(RuntimeUnavailable, match="takes no node"):
        providers.require_in_use(ort, "CUDA", listing)


def test_the_cpu(graph):
    found = onnxruntime.load_session(graph, SessionOptions()).run({"x": -np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("module", "device", "said"),
    [
        (onnxruntime, "NPU", "onnxruntime has no device called 'NPU'"),
        (openvino, "CUDA", "openvino has no device called 'CUDA'"),
        (openvino, "TOASTER", "no runtime has a device called 'TOASTER'"),
    ],
)
def test_a_device_of_another_runtime(graph, module, device, said):
    with pytest.raises(UsageError, match=said):
        module.load_session(graph, SessionOptions(device=device))
