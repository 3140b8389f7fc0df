"""TensorRT (10.13 and later, 11) and TensorRT-RTX through one set of names.

What the libraries disagree on is looked up by name here and nowhere else: flags have other numbers in each release, and
precision is a matter of the graph alone, since TensorRT 11 and TensorRT-RTX have no flags for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemm.errors import BundleError, UsageError, missing_extra
from edgemm.runtimes.cuda import why_no_gpu

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Target → the module of its bindings."""

DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Target → the distributions that bring it."""

NAMES: dict[str, tuple[str, ...]] = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "INetworkDefinition": ("num_layers", "get_layer"),
    "ILayer": ("type",),
    "LayerType": (),
    "IBuilderConfig": ("progress_monitor", "add_optimization_profile"),
    "IOptimizationProfile": ("set_shape",),
    "OnnxParser": ("parse_from_file", "get_error"),
    "ParserError": ("node_operator", "node_name", "desc"),
    "ILogger": ("INTERNAL_ERROR", "ERROR", "WARNING"),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape",
        "get_tensor_location", "get_tensor_profile_shape", "create_execution_context",
    ),
    "IExecutionContext": (
        "set_input_shape", "set_tensor_address", "infer_shapes", "get_tensor_shape", "execute_async_v3",
    ),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("HOST",),
    "DataType": ("FLOAT", "HALF", "INT64", "INT32", "INT8", "UINT8", "BOOL"),
}  # fmt: skip
"""Class of the bindings → its members that edgemm uses: in TensorRT 10.13, 11 and TensorRT-RTX alike."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "ComputeCapability": ("SM86",),
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "LayerType": ("ATTENTION_INPUT",),
    "IAttentionInputLayer": ("attention",),
    "IAttention": ("decomposable",),
    "Runtime": ("engine_header_size", "get_engine_validity"),
    "EngineValidity": ("INVALID",),
    "EngineInvalidityDiagnostics": (),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": (
        "create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    ),
    "IRuntimeCache": ("serialize", "deserialize"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
    "DynamicShapesKernelSpecializationStrategy": ("NONE",),
}  # fmt: skip
"""The same for what is used only where it is found; TensorRT-RTX has it all."""

Profile = Mapping[str, Sequence[Sequence[int]]]
"""Input → its least, usual and greatest shape."""

_UNUSED = "Unused Input"


class Api:
    """The bindings of one library. Raises RuntimeUnavailable where they are not installed."""

    def __init__(self, target: str) -> None:
        self.target = target
        try:
            self.trt: Any = importlib.import_module(PACKAGES[target])
        except (ImportError, OSError) as error:
            raise missing_extra(target, target, error if isinstance(error, ImportError) else None) from error
        self.logger = _logger(self.trt)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def gpus(self) -> tuple[str, ...]:
        """Architectures ("sm86") that engines can be built for where there is none; empty: only for the one here."""
        members = getattr(getattr(self.trt, "ComputeCapability", None), "__members__", {})
        return tuple(name.lower() for name in members if name.startswith("SM"))

    def runtime(self) -> Any:
        """What deserializes engines. The calling thread's device is its own."""
        return self.trt.Runtime(self.logger)

    def build(
        self, graph: Path, profile: Profile, gpus: Sequence[str], tell: Callable[[str, float], None]
    ) -> tuple[bytes, tuple[str, ...]]:
        """The engine of a graph, and what the library warned of.

        Raises UsageError for an unknown architecture, BundleError where the graph cannot be built.
        """
        trt = self.trt
        builder = trt.Builder(self.logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(graph)):
            raise self._refusal(parser)
        self._decompose_attention(network)
        config = builder.create_builder_config()
        config.progress_monitor = _monitor(trt, tell)
        self._aim(config, gpus)
        if profile:
            config.add_optimization_profile(_profile(builder, profile))
        engine = builder.build_serialized_network(network, config)
        said = tuple(dict.fromkeys(self.logger.said))
        if engine is None:
            raise BundleError(
                f"{self.target} {self.version} cannot build {graph.name}: {said[-1][:400] if said else ''}"
            )
        unused = [line for line in said if _UNUSED in line]
        if unused:
            raise BundleError(f"{self.target} {self.version} would ignore an input of {graph.name}: {unused[0][:200]}")
        return bytes(engine), said

    def _refusal(self, parser: Any) -> BundleError:
        error = parser.get_error(0)
        node = f"{error.node_operator()} {error.node_name()!r}"
        return BundleError(f"{self.target} {self.version} cannot parse {node}: {error.desc()[:300]}")

    def _decompose_attention(self, network: Any) -> None:
        """Let attention without a kernel of its own (fp32) be built from its parts."""
        kind = getattr(self.trt.LayerType, "ATTENTION_INPUT", None)
        if kind is None:
            return
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type == kind:
                layer.__class__ = self.trt.IAttentionInputLayer
                layer.attention.decomposable = True

    def _aim(self, config: Any, gpus: Sequence[str]) -> None:
        if not gpus:
            return
        known = self.gpus
        unknown = [gpu for gpu in gpus if gpu not in known]
        if unknown:
            raise UsageError(
                f"{self.target} {self.version} does not build for {unknown[0]}; it does for {', '.join(known)}",
                hint="for other GPUs: --target tensorrt on the device itself, or --runtime onnxruntime",
            )
        config.num_compute_capabilities = len(gpus)
        for i, gpu in enumerate(gpus):
            config.set_compute_capability(getattr(self.trt.ComputeCapability, gpu.upper()), i)


def _profile(builder: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, (least, usual, most) in profile.items():
        made.set_shape(name, list(least), list(usual), list(most))
    return made


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors; the first of a process serves all its builds."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.said.append(message)

    return Logger()


def _monitor(trt: Any, tell: Callable[[str, float], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the share of the outermost phase that is behind."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.outer = ""

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = max(1, steps)
            self.outer = self.outer or phase

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self.outer:
                tell(phase, min(1.0, (step + 1) / self.steps[phase]))
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def check_target(target: str, gpus: Sequence[str]) -> None:
    """Refuse a target that is not known, or that cannot be built on this machine, before anything is loaded."""
    if target not in PACKAGES:
        raise UsageError(f"--target takes {', '.join(PACKAGES)} or openvino, not {target!r}")
    if target == "tensorrt" and gpus:
        raise UsageError(
            "tensorrt builds for the GPU that is here; --gpu is for tensorrt-rtx",
            hint="run edgemm build on the device, without --gpu",
        )
    if not gpus and not _has_gpu():
        here = "--gpu sm86,sm89,sm120" if target == "tensorrt-rtx" else "the device itself"
        raise UsageError("there is no GPU here to build for", hint=f"use {here}")


def _has_gpu() -> bool:
    return not why_no_gpu()


def cuda_of(target: str) -> int:
    """The major version of CUDA that the target's library was built for; 0 where that cannot be told."""
    for major in (13, 12):
        for part in ("", "-libs"):
            try:
                importlib.metadata.version(f"{target}-cu{major}{part}")
            except importlib.metadata.PackageNotFoundError:
                continue
            return major
    return 0


def installed_builder(target: str) -> str:
    """Name and version of the target's library. Raises RuntimeUnavailable where it is not installed."""
    for distribution in DISTRIBUTIONS[target]:
        try:
            return f"{target} {importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    # On a Jetson the library belongs to the system and is no distribution.
    return f"{target} {Api(target).version}"
