"""The devices that `--device` names: those of OpenVINO, and ONNX Runtime's execution providers.

One table: the command line's words, what is asked of ONNX Runtime, and what to install are derived from it. ONNX
Runtime goes over to the CPU without a word where a provider cannot be loaded, so what it really uses is looked at
after loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemm.errors import RuntimeUnavailable, UsageError


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime: `device` is what edgemm calls it, `name` what ONNX Runtime does.

    `install` mends its absence. `options` are given with it; `exact` too, where numbers must stay what they are.
    """

    device: str
    name: str
    install: str
    options: tuple[tuple[str, str], ...] = ()
    exact: tuple[tuple[str, str], ...] = ()


CPU = "CPU"
_INSTEAD = "pip uninstall -y onnxruntime && pip install"
_GPU_WHEEL = f"{_INSTEAD} onnxruntime-gpu"

PROVIDERS: dict[str, Provider] = {
    p.device: p
    for p in (
        Provider(CPU, "CPUExecutionProvider", "pip install onnxruntime"),
        Provider("CUDA", "CUDAExecutionProvider", _GPU_WHEEL, exact=(("use_tf32", "0"),)),
        Provider("TENSORRT", "TensorrtExecutionProvider", f"{_GPU_WHEEL} tensorrt-cu12"),
        Provider("NVTENSORRTRTX", "NvTensorRTRTXExecutionProvider", f"{_GPU_WHEEL} tensorrt-rtx"),
        Provider("DIRECTML", "DmlExecutionProvider", f"{_INSTEAD} onnxruntime-directml"),
        Provider("COREML", "CoreMLExecutionProvider", "pip install onnxruntime"),
        Provider("QNN", "QNNExecutionProvider", f"{_INSTEAD} onnxruntime-qnn", (("backend_type", "htp"),)),
        Provider("OPENVINO", "OpenVINOExecutionProvider", f"{_INSTEAD} onnxruntime-openvino"),
    )
}
OPENVINO_DEVICES = (CPU, "GPU", "NPU", "AUTO")

DEVICES: dict[str, tuple[str, ...]] = {"onnxruntime": tuple(PROVIDERS), "openvino": OPENVINO_DEVICES}
"""Runtime → the devices that it may be told. A runtime that is not here has one kind of device, and is told none."""

ALL_DEVICES = tuple(dict.fromkeys(device for devices in DEVICES.values() for device in devices))


def runtimes_for(device: str) -> tuple[str, ...]:
    """The runtimes that know a device by this name ("GPU", "GPU.1", "CUDA"). Raises UsageError where none does."""
    found = tuple(name for name, devices in DEVICES.items() if _family(device) in devices)
    if not found:
        raise UsageError(f"no runtime has a device called {device!r}", hint=f"use {', '.join(ALL_DEVICES)}")
    return found


def require_device(runtime: str, device: str) -> None:
    """Raise UsageError where `runtime` does not know the device, whatever the machine has."""
    known = DEVICES.get(runtime)
    if known is not None and runtime not in runtimes_for(device):
        others = ", ".join(runtimes_for(device))
        raise UsageError(
            f"{runtime} has no device called {device!r}; it has {', '.join(known)}", hint=f"use --runtime {others}"
        )


def _family(device: str) -> str:
    """ "GPU" of "GPU.1", "AUTO" of "AUTO:GPU,CPU"."""
    return device.partition(".")[0].partition(":")[0]


def requested(ort: Any, device: str, *, exact: bool) -> list[Any]:
    """What `InferenceSession` is told for a device, the CPU last.

    Raises UsageError for an unknown device, RuntimeUnavailable where the installed ONNX Runtime was built without it.
    """
    require_device("onnxruntime", device)
    provider, cpu = PROVIDERS[device], PROVIDERS[CPU].name
    if device == CPU:
        return [cpu]
    if provider.name not in ort.get_available_providers():
        raise _absent(ort, provider, f"was built without {provider.name}")
    return [(provider.name, dict(provider.options + (provider.exact if exact else ()))), cpu]


def require_in_use(ort: Any, device: str, session: Any) -> None:
    """Raise RuntimeUnavailable where a loaded session runs on the CPU alone and was asked for another device."""
    provider = PROVIDERS[device]
    if device == CPU:
        return
    if provider.name not in session.get_providers():
        raise _absent(ort, provider, f"could not load {provider.name}, and would run on the CPU")
    assigned = _assigned(session)
    if assigned and provider.name not in assigned:
        raise RuntimeUnavailable(
            f"{provider.name} takes no node of this graph; all would run on the CPU",
            hint="choose --device CPU, or another precision of the bundle",
        )


RECORD_KEY = "session.record_ep_graph_assignment_info"
"""With this a session of ONNX Runtime 1.24 and later can say which provider runs which nodes."""


def _assigned(session: Any) -> set[str]:
    """The providers that nodes of the graph were given to; nothing where this ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return set()
    try:
        return {str(part.ep_name) for part in tell()}
    except Exception:
        return set()


def _absent(ort: Any, provider: Provider, what: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"onnxruntime {ort.__version__} {what}", hint=f"run: {provider.install}")
