"""The few calls of the CUDA driver that running an engine takes, by ctypes on the library that the driver installs.

Nothing else has to be installed: TensorRT's own runtime and this share the device's primary context. What is above this
file asks for a `Device` only, so that a test can give it another.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import Any, Protocol

from edgemm.errors import RuntimeUnavailable
from edgemm.runtimes.base import Array

LIBRARY = "libcuda.so.1"

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_ulonglong), c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_ulonglong, c_ulonglong, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamQuery": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}
# Numbers of cuda.h.
_NOT_READY = 600
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76
_NON_BLOCKING, _THREAD_LOCAL = 1, 1


class DeviceError(RuntimeUnavailable):
    """The driver refused a call, or work that was given to it failed."""


class Device(Protocol):
    """One GPU, or what a test has in its place. Addresses are of its memory; `sm` is its architecture ("sm89").

    Every method but the first may raise DeviceError.
    """

    name: str
    sm: str
    driver: int
    """CUDA's version that the driver serves: 12080 is 12.8."""

    def use(self) -> None:
        """Make this the device of the calling thread."""
        ...

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, aligned as TensorRT wants it."""
        ...

    def free(self, address: int) -> None: ...

    def stream(self) -> int:
        """A queue of work: what is given to it runs in order."""
        ...

    def drop_stream(self, stream: int) -> None: ...

    def upload(self, address: int, array: Array, stream: int) -> None:
        """Queue a copy of a contiguous array, which must stay until it is done."""
        ...

    def download(self, array: Array, address: int, stream: int) -> None:
        """Queue a copy into a contiguous array, which must stay until it is done."""
        ...

    def copy(self, target: int, source: int, size: int, stream: int) -> None: ...

    def done(self, stream: int) -> bool:
        """Whether all that was queued is done."""
        ...

    def wait(self, stream: int) -> None: ...

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues, instead of running it."""
        ...

    def end_capture(self, stream: int) -> int:
        """The recording, to be launched as often as wanted."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def drop_graph(self, graph: int) -> None: ...


class CudaDevice:
    """See `Device`. Raises RuntimeUnavailable where there is no such GPU, or no driver."""

    def __init__(self, index: int = 0) -> None:
        self._library = _library()
        self.driver = self._number("cuDriverGetVersion")
        self.count = self._number("cuDeviceGetCount")
        if index >= self.count:
            raise RuntimeUnavailable(
                f"there is no NVIDIA GPU {index} here, but {self.count}", hint="see what edgemm doctor lists"
            )
        device = self._number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode(errors="replace")
        major, minor = (self._number("cuDeviceGetAttribute", which, device) for which in (_MAJOR, _MINOR))
        self.sm = f"sm{major}{minor}"
        self._device, self._context = device, 0

    def use(self) -> None:
        if not self._context:
            # Never released: TensorRT's own objects may outlive this one, and the process has but one.
            self._context = self._handle("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        address = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        self.use()
        self._call("cuMemFree_v2", address)

    def stream(self) -> int:
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def drop_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def upload(self, address: int, array: Array, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: Array, address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def done(self, stream: int) -> bool:
        code = int(self._library.cuStreamQuery(stream))
        if code not in (0, _NOT_READY):
            raise self._error("cuStreamQuery", code)
        return code == 0

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        recorded = c_void_p()
        self._call("cuStreamEndCapture", stream, byref(recorded))
        try:
            return self._handle("cuGraphInstantiateWithFlags", recorded, 0)
        finally:
            self._call("cuGraphDestroy", recorded)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def drop_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _number(self, name: str, *more: Any) -> int:
        value = c_int()
        self._call(name, byref(value), *more)
        return value.value

    def _handle(self, name: str, *more: Any) -> int:
        value = c_void_p()
        self._call(name, byref(value), *more)
        return value.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self._error(name, int(code))

    def _error(self, name: str, code: int) -> DeviceError:
        return DeviceError(f"{name} failed: {_word(self._library, code)}")


def _word(library: Any, code: int) -> str:
    word = c_char_p()
    library.cuGetErrorName(code, byref(word))
    return word.value.decode() if word.value else f"error {code}"


@cache
def _library() -> Any:
    """The driver's library, ready. Raises RuntimeUnavailable."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise _unavailable(f"no NVIDIA driver is installed: {error}") from error
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise _unavailable(f"the NVIDIA driver is too old: it has no {name}")
        function.argtypes, function.restype = arguments, c_int
    code = int(library.cuInit(0))
    if code:
        raise _unavailable(
            "the NVIDIA driver finds no GPU"
            if code == _NO_DEVICE
            else f"the NVIDIA driver does not start: {_word(library, code)}"
        )
    return library


def _unavailable(why: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        f"there is no GPU to run on: {why}", hint="use --runtime onnxruntime, or see what edgemm doctor lists"
    )


def why_no_gpu() -> str:
    """Why there is no NVIDIA GPU that can be used; empty where there is one."""
    try:
        _library()
    except RuntimeUnavailable as error:
        return error.message
    return ""


def gpus() -> tuple[CudaDevice, ...]:
    """Every NVIDIA GPU that can be used."""
    try:
        first = CudaDevice()
        return (first, *(CudaDevice(i) for i in range(1, first.count)))
    except (RuntimeUnavailable, DeviceError):
        return ()
