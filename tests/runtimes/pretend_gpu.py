"""A TensorRT that is none, on a `PretendDevice`: an engine runs its portable graph in ONNX Runtime.

Everything above `edgemm.runtimes.cuda.Device` and the library's bindings is the real thing, so what is held is how it
uses them. No engine was ever run for this.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort

from edgemm.bundle.manifest import Engine
from edgemm.runtimes import registry, tensorrt, tensorrt_api, tensorrt_engine
from edgemm.runtimes.base import SessionOptions, StatePort
from edgemm.runtimes.engines import Note
from edgemm.runtimes.lowering import fixed_state
from edgemm.runtimes.lowering.graph import Unrecognised
from tests.export.exported import RUNTIMES
from tests.runtimes.pretend_device import PretendDevice, move

VERSION = "1.7.9"
HEADER = b"vtrt" + bytes(60)


class DataType(enum.Enum):
    FLOAT, HALF, INT64, INT32, INT8, UINT8, BOOL, BF16 = range(8)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, MALFORMED_ENGINE = 1, 2, 4, 32


class CudaGraphStrategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None: ...


_OF_ORT = {
    "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32",
    "tensor(int8)": "INT8", "tensor(uint8)": "UINT8", "tensor(bool)": "BOOL",
}  # fmt: skip
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "INT64": "i8", "INT32": "i4", "INT8": "i1", "UINT8": "u1", "BOOL": "?"}


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized: bytes) -> Any:
        try:
            about = json.loads(serialized[len(HEADER) :])
            return ICudaEngine(about)
        except Exception as error:
            self._logger.log(ILogger.ERROR, f"deserializing failed: {str(error).splitlines()[0]}")
            return None


class RtxRuntime(Runtime):
    engine_header_size = len(HEADER)

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        assert len(buffer) == self.engine_header_size
        kinds = [k for k in EngineInvalidityDiagnostics if buffer[4] & k]
        return (EngineValidity.INVALID if kinds else EngineValidity.VALID), int(buffer[4])


class IRuntimeConfig:
    pass


class RtxConfig(IRuntimeConfig):
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    known = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.known = blob
        return True

    def serialize(self) -> bytes:
        return self.known or b"kernels"


class ICudaEngine:
    rtx = True

    def __init__(self, about: dict[str, Any]) -> None:
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        self.session = ort.InferenceSession(about["graph"], settings, providers=["CPUExecutionProvider"])
        self.rtx, self.profile, self.host = about["rtx"], about["profile"], set(about["host"])
        self.nodes = {n.name: n for n in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.ins = [n.name for n in self.session.get_inputs()]
        self.configs: list[Any] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.nodes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.ins else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_OF_ORT[self.nodes[name].type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.nodes[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.host else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        shape = self.get_tensor_shape(name)
        wide = [tuple(bound if d < 0 else d for d in shape) for bound in (0, 1, 1 << 40)]
        return [tuple(s) for s in self.profile.get(name, wide)]

    def create_runtime_config(self) -> IRuntimeConfig:
        return RtxConfig() if self.rtx else IRuntimeConfig()

    def create_execution_context(self, runtime_config: Any = None) -> IExecutionContext:
        self.configs.append(runtime_config)
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.device = engine, _DEVICE.get()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self._known: dict[Any, dict[str, tuple[int, ...]]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        self.shapes[name] = tuple(shape)
        return len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory != 0

    def infer_shapes(self) -> list[str]:
        missing = [n for n in self.engine.ins if n not in self.shapes]
        if not missing:
            self._sizes()
        return missing

    def _sizes(self) -> dict[str, int]:
        """Dimensions by name: an engine takes one name at one size."""
        sizes: dict[str, int] = {}
        for name in self.engine.ins:
            for dim, size in zip(self.engine.nodes[name].shape, self.shapes[name], strict=True):
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    raise RuntimeError(f"{dim} of {name} is {size}, not {sizes[dim]}")
        return sizes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.ins:
            return self.shapes[name]
        sizes = self._sizes()
        if {"past", "new"} <= sizes.keys():
            sizes.setdefault("total", sizes["past"] + sizes["new"])
        dims = [d if isinstance(d, int) else sizes.get(d) for d in self.engine.nodes[name].shape]
        return self._tried()[name] if None in dims else tuple(int(d or 0) for d in dims)

    def _tried(self) -> dict[str, tuple[int, ...]]:
        """Shapes of outputs that the graph does not name, found by running it on nothing."""
        key = tuple(sorted(self.shapes.items()))
        if key not in self._known:
            feeds = {n: np.zeros(self.shapes[n], self._numpy(n)) for n in self.engine.ins}
            names = [n for n in self.engine.nodes if n not in self.engine.ins]
            try:
                found = self.engine.session.run(names, feeds)
            except Exception:
                return dict.fromkeys(names, (1,))
            self._known[key] = {n: f.shape for n, f in zip(names, found, strict=True)}
        return self._known[key]

    def _numpy(self, name: str) -> str:
        return _NUMPY[self.engine.get_tensor_dtype(name).name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        ins, outs = self.engine.ins, [n for n in self.engine.nodes if n not in self.engine.ins]
        shapes = {n: self.get_tensor_shape(n) for n in self.engine.nodes}
        places = dict(self.addresses)
        read = {places[n] for n in ins}
        assert not read & {places[n] for n in outs}, "an engine may not write where it reads"
        for name, shape in shapes.items():
            if name not in self.engine.host:
                self.device.inside(places[name], int(np.prod(shape)) * np.dtype(self._numpy(name)).itemsize)

        def work() -> None:
            feeds = {n: _array(places[n], shapes[n], self._numpy(n)) for n in ins}
            for name, result in zip(outs, self.engine.session.run(outs, feeds), strict=True):
                assert result.shape == shapes[name], f"{name}: {result.shape}, not {shapes[name]}"
                move(places[name], np.ascontiguousarray(result).ctypes.data, result.nbytes)

        self.device.queue(stream_handle, work)
        return True


def _array(address: int, shape: tuple[int, ...], dtype: str) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)


class _Current:
    """The device that contexts are made on: like the real ones, they are not told."""

    def __init__(self) -> None:
        self._device = PretendDevice()

    def get(self) -> PretendDevice:
        return self._device

    def set(self, device: PretendDevice) -> None:
        self._device = device


_DEVICE = _Current()


def library(*, rtx: bool = True) -> types.ModuleType:
    """Bindings with the names that edgemm uses, as TensorRT-RTX has them, or TensorRT."""
    made = types.ModuleType("pretend_tensorrt")
    names: dict[str, Any] = {
        "__version__": VERSION, "ILogger": ILogger, "DataType": DataType, "TensorIOMode": TensorIOMode,
        "TensorLocation": TensorLocation, "Runtime": RtxRuntime if rtx else Runtime,
    }  # fmt: skip
    if rtx:
        kinds = (
            EngineValidity, EngineInvalidityDiagnostics, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy
        )  # fmt: skip
        names |= {kind.__name__: kind for kind in kinds}
    vars(made).update(names)
    return made


@contextmanager
def pretending(device: PretendDevice | None = None, *, target: str = "tensorrt-rtx") -> Iterator[PretendDevice]:
    """While this lasts, engines are opened on `device` by the pretended library."""
    before = _DEVICE.get()
    device = device or before
    _DEVICE.set(device)
    with (
        mock.patch.dict(sys.modules, {"pretend_tensorrt": library(rtx=target == "tensorrt-rtx")}),
        mock.patch.dict(tensorrt_api.PACKAGES, {target: "pretend_tensorrt"}),
        mock.patch.object(tensorrt_engine, "CudaDevice", return_value=device),
        mock.patch.object(tensorrt_engine, "installed_builder", lambda target: f"{target} {VERSION}"),
        mock.patch.object(tensorrt_engine, "cuda_of", return_value=13),
    ):
        try:
            yield device
        finally:
            _DEVICE.set(before)


def write_engine(
    folder: Path,
    graph: Path,
    *,
    target: str = "tensorrt-rtx",
    gpu: tuple[str, ...] = ("sm86", "sm89"),
    profile: dict[str, list[list[int]]] | None = None,
    host: tuple[str, ...] = (),
    header: bytes = HEADER,
    component: str = "",
    graph_sha256: str = "0" * 64,
) -> Path:
    """The "engine" of a graph, and its note."""
    about = {"graph": str(graph), "profile": profile or {}, "host": host, "rtx": target == "tensorrt-rtx"}
    path = folder / f"{graph.name}.engine"
    data = header + json.dumps(about).encode()
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    engine = Engine(
        component=component or graph.stem, target=target, gpu=gpu, builder=f"{target} {VERSION}",
        sha256=digest, options_sha256=digest, seconds=0.1, bytes=len(data),
    )  # fmt: skip
    note = Note(engine=engine, graph_sha256=graph_sha256, profile=profile or {}, cosine=1.0, peak_rss_mb=0.0)
    path.with_suffix(".json").write_text(note.model_dump_json())
    return path


class Loader:
    """A runtime's module that makes an engine of a graph, then loads it; with `buffers`, of a decoder over buffers."""

    def __init__(self, target: str, *, buffers: bool = False) -> None:
        self._target, self._buffers = target, buffers

    def load_session(self, path: Path, options: SessionOptions) -> tensorrt.TrtSession:
        with pretending(target=self._target), tempfile.TemporaryDirectory() as folder:
            return tensorrt.load_session(write_engine(Path(folder), path, target=self._target), options)

    def load_decoder(
        self, path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions
    ) -> tensorrt.TrtDecoder:
        with pretending(target=self._target), tempfile.TemporaryDirectory() as folder:
            if self._buffers:
                with suppress(Unrecognised):
                    path = fixed_state.lower(path, states, capacity).save(Path(folder))
            engine = write_engine(Path(folder), path, target=self._target)
            return tensorrt.load_decoder(engine, states, capacity, options)


PRETENDED = {
    "pretended-tensorrt-rtx": Loader("tensorrt-rtx"),
    "pretended-tensorrt": Loader("tensorrt"),
    "pretended-tensorrt-buffers": Loader("tensorrt", buffers=True),
}

CONTRACT = (*RUNTIMES, *PRETENDED)
"""What the contracts are held by."""


def module(runtime: str) -> Any:
    """The module of a runtime, the pretended ones included."""
    return PRETENDED.get(runtime) or registry.module(runtime)
