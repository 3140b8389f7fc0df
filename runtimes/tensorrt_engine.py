"""An engine file → an engine that can run: everything that can be wrong with it is found before it is deserialized.

TensorRT says of a bad engine that it is None, or takes the process with it. So the note beside the file is believed
first (size, hash, library, GPU), then the library's own look at the header where it has one, and its None is an error.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgemm.bundle.files import cache_dir, write_atomically
from edgemm.bundle.manifest import Component
from edgemm.bundle.opening import Bundle
from edgemm.errors import BundleError, RuntimeUnavailable, StorageError
from edgemm.runtimes.base import SessionOptions
from edgemm.runtimes.cuda import CudaDevice, Device, DeviceError
from edgemm.runtimes.device_memory import Queue
from edgemm.runtimes.engines import FOLDER, Note, engines_of
from edgemm.runtimes.lowering.fixed_state import PLACES
from edgemm.runtimes.tensorrt_api import Api, cuda_of, installed_builder

_MAGIC = {"tensorrt-rtx": b"vtrt"}
_REASONS = {
    "VERSION_MISMATCH": "it was built by another version",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is malformed",
    "CUDA_ERROR": "CUDA reports an error",
}


class OpenEngine:
    """A deserialized engine with its execution context, a stream and memory.

    `steady` says that shapes stay as they are from call to call, as those of a decoder over buffers do: kernels are
    then specialized and whole graphs captured by the library, where it can. `captures` says that it does the latter
    itself.
    """

    def __init__(self, path: Path, options: SessionOptions, *, steady: bool) -> None:
        self.name = path.name
        self.note = _note(path)
        self.target = self.note.engine.target
        data = _bytes(path, self.note)
        _check_library(self.name, self.note)
        self.queue = _queue(options)
        _check_device(self.name, self.note, self.device)
        self._api = Api(self.target)
        self._runtime: Any = self._api.runtime()
        self._check_header(data)
        self.engine: Any = self._deserialized(data)
        self.captures = False
        self._cache: Any = None
        self._cache_path = cache_dir(FOLDER, "kernels", f"{self.note.engine.sha256}.{self.device.sm}.cache")
        self.context: Any = self._new_context(steady or self._takes(PLACES), options)

    @property
    def device(self) -> Device:
        return self.queue.device

    @property
    def trt(self) -> Any:
        return self._api.trt

    @property
    def said(self) -> str:
        """The last that the library warned of."""
        return self._api.logger.said[-1][:300] if self._api.logger.said else "it gives no reason"

    def _takes(self, name: str) -> bool:
        return name in (self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors))

    def _check_header(self, data: bytes) -> None:
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        head = data[: self._runtime.engine_header_size]
        validity, bits = self._runtime.get_engine_validity(head)
        kinds = self.trt.EngineInvalidityDiagnostics.__members__
        found = [name for name, kind in kinds.items() if int(bits) & int(kind)]
        if validity == self.trt.EngineValidity.INVALID and found:
            raise _refusal(self.name, self.note, "; ".join(_REASONS.get(name, name) for name in found))

    def _deserialized(self, data: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise _refusal(self.name, self.note, self.said)
        return engine

    def _new_context(self, steady: bool, options: SessionOptions) -> Any:
        config = self._config(steady, options)
        context = self.engine.create_execution_context(config) if config else self.engine.create_execution_context()
        if context is None:
            raise BundleError(
                f"{self.target} has no room on {self.device.name} for {self.name}: {self.said}",
                hint="close other programs that use the GPU, or export with --int8",
            )
        return context

    def _config(self, steady: bool, options: SessionOptions) -> Any:
        """How the engine is to run, where the library has such settings; else None."""
        if not hasattr(self.engine, "create_runtime_config"):
            return None
        trt, config = self.trt, self.engine.create_runtime_config()
        if hasattr(config, "create_runtime_cache"):
            self._cache = config.create_runtime_cache()
            self._recall()
            config.set_runtime_cache(self._cache)
        if steady and options.cuda_graphs and hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.captures = True
        if not steady and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # A state is longer with every token: kernels for each length would be compiled on and on.
            none = trt.DynamicShapesKernelSpecializationStrategy.NONE
            config.dynamic_shapes_kernel_specialization_strategy = none
        return config

    def _recall(self) -> None:
        """Kernels that were compiled on this GPU before; a cache of another driver or GPU is thrown away."""
        try:
            known = self._cache_path.read_bytes()
        except OSError:
            return
        if not self._cache.deserialize(known):
            self._cache_path.unlink(missing_ok=True)

    def remember(self) -> None:
        """Keep the kernels that were compiled so far for the next process."""
        if self._cache is None:
            return
        kernels = bytes(self._cache.serialize() or b"")
        try:
            known = self._cache_path.stat().st_size
        except OSError:
            known = 0
        if len(kernels) != known:
            with suppress(OSError, StorageError):
                write_atomically(self._cache_path, kernels)

    def close(self) -> None:
        """Free everything but the tensors that somebody holds."""
        if self.context is None:
            return
        self.queue.close()
        self.remember()
        # In this order: each needs the next one.
        self.context = None
        self._cache = None
        self.engine = None
        self._runtime = None


def find_engine(bundle: Bundle, component: Component, target: str, options: SessionOptions) -> Path:
    """The fresh engine of a component for the GPU that is used.

    Raises BundleError where there is none: it says why those that there are cannot be used, and what makes one.
    """
    device, builder = open_device(options), installed_builder(target)
    reasons = []
    for found in engines_of(bundle, builder, component=component.name, target=target):
        fits = not found.note.engine.gpu or device.sm in found.note.engine.gpu
        if fits and not found.stale:
            return found.path
        reasons.append(found.stale or f"it is for {', '.join(found.note.engine.gpu)}, not {device.sm}")
    why = f": {reasons[0]}" if reasons else ""
    raise BundleError(
        f"{bundle.name} has no engine of {component.name} that {target} can run on {device.name}{why}",
        hint=f"run: edgemm build {bundle.path} --target {target}",
    )


def open_device(options: SessionOptions) -> Device:
    """The GPU that `options.device` names: "GPU.1" is the second; any other word is the first."""
    _, _, number = options.device.replace(":", ".").partition(".")
    try:
        return CudaDevice(int(number) if number.isdigit() else 0)
    except DeviceError as error:
        raise _unusable(error) from error


def _queue(options: SessionOptions) -> Queue:
    try:
        return Queue(open_device(options))
    except DeviceError as error:
        raise _unusable(error) from error


def _unusable(error: DeviceError) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"the GPU cannot be used: {error}", hint="see what edgemm doctor and nvidia-smi say")


def _refusal(name: str, note: Note, why: str) -> BundleError:
    again = f"run: edgemm build BUNDLE --target {note.engine.target}"
    return BundleError(f"{note.engine.target} cannot load {name}: {why}", hint=again)


def _note(path: Path) -> Note:
    try:
        return Note.model_validate_json(path.with_suffix(".json").read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(
            f"cannot load {path.name}: an engine has a note beside it, {path.with_suffix('.json').name}, "
            f"and this one is {'missing' if isinstance(error, OSError) else 'not valid'}",
            hint="run: edgemm build BUNDLE --target tensorrt-rtx, or tensorrt",
        ) from error


def _bytes(path: Path, note: Note) -> bytes:
    """The engine, which is whole and the one that the note is about."""
    try:
        size = path.stat().st_size
        if size != note.engine.bytes:
            raise _refusal(path.name, note, f"it is torn: {size} bytes, {note.engine.bytes} expected")
        data = path.read_bytes()
    except OSError as error:
        raise _refusal(path.name, note, f"it cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != note.engine.sha256:
        raise _refusal(path.name, note, "it was changed after it was built")
    magic = _MAGIC.get(note.engine.target, b"")
    if not data.startswith(magic):
        raise _refusal(path.name, note, f"it is no engine of {note.engine.target}")
    return data


def _check_library(name: str, note: Note) -> None:
    builder = installed_builder(note.engine.target)
    if note.engine.builder != builder:
        raise _refusal(name, note, f"it was built by {note.engine.builder}, {builder} is installed")


def _check_device(name: str, note: Note, device: Device) -> None:
    target, wanted = note.engine.target, cuda_of(note.engine.target)
    if device.driver // 1000 < wanted:
        raise RuntimeUnavailable(
            f"the NVIDIA driver serves CUDA {device.driver // 1000}.{device.driver % 1000 // 10}; "
            f"{note.engine.builder} needs {wanted}",
            hint=f"update the driver, or run: pip install {target}-cu{device.driver // 1000}",
        )
    if note.engine.gpu and device.sm not in note.engine.gpu:
        raise BundleError(
            f"{target} cannot load {name}: it was built for {', '.join(note.engine.gpu)}; {device.name} is {device.sm}",
            hint=f"run: edgemm build BUNDLE --target {target}",
        )
