"""TensorRT and TensorRT-RTX: engines that `edgemm build` made, on an NVIDIA GPU.

What is loaded is an engine file, not a graph: `edgemm.runtimes.engines` finds the fresh one of a component. State
tensors of a decoder stay on the GPU: what one call returns as `present.*` is the `past.*` of the next one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BundleError, InputError
from edgemm.runtimes.base import (
    Array,
    SessionOptions,
    StatePort,
    TensorPort,
    Value,
    as_numpy,
    cast_to,
    check_feeds,
)
from edgemm.runtimes.cuda import DeviceError
from edgemm.runtimes.device_memory import DeviceTensor
from edgemm.runtimes.lowering.fixed_state import PLACES
from edgemm.runtimes.tensorrt_decoder import FixedDecoder, TrtDecoder
from edgemm.runtimes.tensorrt_engine import OpenEngine

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_SPIN_S, _PAUSE_S = 0.002, 0.0002


def _ports(it: OpenEngine) -> tuple[dict[str, TensorPort], dict[str, TensorPort], frozenset[str]]:
    """Inputs, outputs, and the names of those that live in the host's memory."""
    trt, engine = it.trt, it.engine
    inputs: dict[str, TensorPort] = {}
    outputs: dict[str, TensorPort] = {}
    host = set()
    for name in [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]:
        kind = engine.get_tensor_dtype(name)
        if kind.name not in _DTYPES:
            raise BundleError(f"{it.name} has {name} in {kind.name}, which numpy has not", hint="export it again")
        port = TensorPort(name, _DTYPES[kind.name], tuple(engine.get_tensor_shape(name)))
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = port
        if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            host.add(name)
    return inputs, outputs, frozenset(host)


@dataclass
class _Call:
    """What one call reads and writes: the GPU uses it until the stream is done, cancelled or not."""

    arrays: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, DeviceTensor] = field(default_factory=dict)
    results: dict[str, Value] = field(default_factory=dict)


class _Replay:
    """CUDA graphs of the last calls, launched while calls read and write at the same places in the same shapes.

    Two are kept of the same shapes: a decoder's two sets of buffers take turns.
    """

    _MOST = 2

    def __init__(self, it: OpenEngine, wanted: bool) -> None:
        self._it, self._wanted = it, wanted and not it.captures
        self._shapes: object = None
        self._graphs: dict[object, int] = {}

    def execute(self, call: _Call, steady: bool) -> bool:
        """Queue the engine's work; `steady` where the call's tensors stay where they are from call to call."""
        it = self._it
        if not (steady and self._wanted):
            return bool(it.context.execute_async_v3(it.queue.stream))
        shapes = tuple((name, t.shape) for name, t in call.tensors.items())
        key = tuple(t.address for t in call.tensors.values())
        if shapes != self._shapes or key not in self._graphs:
            # The first call with other shapes may not be captured: TensorRT prepares itself in it.
            self._forget(len(self._graphs) - (self._MOST - 1 if shapes == self._shapes else 0))
            self._shapes = shapes
            self._graphs[key] = 0
            return bool(it.context.execute_async_v3(it.queue.stream))
        try:
            self._graphs[key] = self._graphs[key] or self._captured()
            it.device.launch(self._graphs[key], it.queue.stream)
            return True
        except DeviceError:
            self._wanted = False
            return bool(it.context.execute_async_v3(it.queue.stream))

    def _captured(self) -> int:
        it = self._it
        it.device.begin_capture(it.queue.stream)
        queued = it.context.execute_async_v3(it.queue.stream)
        graph = it.device.end_capture(it.queue.stream)
        if not queued:
            raise DeviceError("the engine cannot be captured")
        return graph

    def forget(self) -> None:
        self._forget(len(self._graphs))

    def _forget(self, oldest: int) -> None:
        for key in list(self._graphs)[: max(0, oldest)]:
            graph = self._graphs.pop(key)
            if graph:
                self._it.device.drop_graph(graph)


class TrtSession:
    """See `edgemm.runtimes.base.Session`.

    A GPU cannot be stopped: `cancel` makes the waiting end, and the next call waits for what is still under way.
    """

    def __init__(self, it: OpenEngine, options: SessionOptions) -> None:
        self._it = it
        self.inputs, self.outputs, self._host = _ports(it)
        self._staged: dict[str, DeviceTensor] = {}
        self._replay = _Replay(it, options.cuda_graphs)
        self._under_way: _Call | None = None
        self._cancelled = False
        self.users = 0

    def run(
        self,
        feeds: Mapping[str, Value],
        *,
        keep: Collection[str] = (),
        into: Mapping[str, DeviceTensor] | None = None,
    ) -> dict[str, Value]:
        """See `Session.run`. Outputs that `into` names are written into its tensors, which must have their shapes."""
        check_feeds(self.inputs, feeds)
        given = {name: self._given(self.inputs[name], value) for name, value in feeds.items()}
        self._cancelled = False
        with self._telling():
            return self._run(given, keep, into or {})

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the driver refuses is an error of the call."""
        try:
            yield
        except DeviceError as error:
            raise self._failed(str(error)) from error

    def _run(
        self, given: Mapping[str, Array | DeviceTensor], keep: Collection[str], into: Mapping[str, DeviceTensor]
    ) -> dict[str, Value]:
        it = self._it
        it.device.use()
        self._drain()
        call = self._under_way = _Call()
        for name, value in given.items():
            self._bind_input(call, name, value)
        self._infer()
        for name in self.outputs:
            self._bind_output(call, name, name in keep, into.get(name))
        steady = into.keys() >= set(keep)
        if not self._replay.execute(call, steady):
            raise self._failed(it.said)
        for name, result in call.results.items():
            if isinstance(result, np.ndarray) and result.size and name not in self._host:
                it.device.download(result, call.tensors[name].address, it.queue.stream)
        self._wait()
        self._under_way = None
        return call.results

    def _infer(self) -> None:
        try:
            missing = self._it.context.infer_shapes()
        except RuntimeError as error:
            raise self._failed(f"shapes do not fit each other: {self._it.said}") from error
        if missing:
            raise self._failed(f"it wants the shape of {', '.join(missing)}")

    def _given(self, port: TensorPort, value: Value) -> Array | DeviceTensor:
        """A feed in the port's type. Raises InputError where it or its shape is not the engine's."""
        fits = isinstance(value, DeviceTensor) and value.dtype == port.dtype and len(value.shape) == len(port.shape)
        if fits and port.name not in self._host:
            assert isinstance(value, DeviceTensor)
            found: Array | DeviceTensor = value
        else:
            found = cast_to(port, as_numpy(value))
        if -1 in port.shape:
            self._check_range(port.name, found.shape)
        return found

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = (tuple(dims) for dims in self._it.engine.get_tensor_profile_shape(name, 0))
        if not all(low <= got <= high for low, got, high in zip(least, shape, most, strict=True)):
            raise self._failed(f"{name} takes {list(least)} to {list(most)}, not {list(shape)}")

    def _bind_input(self, call: _Call, name: str, value: Array | DeviceTensor) -> None:
        it = self._it
        if isinstance(value, DeviceTensor):
            call.tensors[name] = value
        else:
            call.arrays[name] = value
        address = value.ctypes.data if isinstance(value, np.ndarray) else value.address
        if isinstance(value, np.ndarray) and name not in self._host:
            tensor = call.tensors[name] = self._stage(name, value.shape, value.dtype)
            address = tensor.address
            if value.size:
                it.device.upload(address, value, it.queue.stream)
        bound = it.context.set_input_shape(name, tuple(value.shape)) and it.context.set_tensor_address(name, address)
        if not bound:
            raise self._failed(f"{name} cannot be {list(value.shape)}: {it.said}")

    def _bind_output(self, call: _Call, name: str, kept: bool, place: DeviceTensor | None) -> None:
        it, port = self._it, self.outputs[name]
        shape = tuple(it.context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise self._failed(f"the size of {name} depends on the data")
        if name in self._host:
            result = call.results[name] = np.empty(shape, port.dtype)
            address = result.ctypes.data
        else:
            tensor = place or (it.queue.empty(shape, port.dtype) if kept else self._stage(name, shape, port.dtype))
            call.tensors[name], address = tensor, tensor.address
            call.results[name] = tensor if kept or place else np.empty(shape, port.dtype)
        if not it.context.set_tensor_address(name, address):
            raise self._failed(f"{name} cannot be bound: {it.said}")

    def _stage(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """A tensor in the session's own memory, at the place that `name` had before where that is large enough."""
        needed = int(np.prod(shape)) * dtype.itemsize
        old = self._staged.get(name)
        fits = old is not None and old.buffer.size >= needed
        if fits and old is not None:
            made = DeviceTensor(old.buffer, shape, dtype, self._it.queue)
        else:
            made = self._it.queue.empty(shape, dtype)
        self._staged[name] = made
        return made

    def upload(self, name: str, value: Value) -> DeviceTensor:
        """`value` as a feed for `name` that need not be copied again."""
        found = self._given(self.inputs[name], value)
        with self._telling():
            return found if isinstance(found, DeviceTensor) else self._it.queue.tensor(found)

    def empty(self, name: str, shape: tuple[int, ...]) -> DeviceTensor:
        """A tensor for the input `name`, of arbitrary numbers."""
        with self._telling():
            return self._it.queue.empty(shape, self.inputs[name].dtype)

    def most(self, name: str, axis: int) -> int:
        """The greatest size that the engine takes an input's `axis` at."""
        return int(tuple(self._it.engine.get_tensor_profile_shape(name, 0)[2])[axis])

    def head(self, tensor: DeviceTensor, length: int, axis: int) -> DeviceTensor:
        """The first `length` of `axis`."""
        with self._telling():
            return self._it.queue.head(tensor, length, axis)

    def longer(self, tensor: DeviceTensor, length: int, axis: int) -> DeviceTensor:
        """`tensor` with zeros behind it, up to `length` along `axis`."""
        with self._telling():
            return self._it.queue.longer(tensor, length, axis)

    def take(self, tensor: DeviceTensor, rows: Array) -> DeviceTensor:
        """Rows of the first axis."""
        with self._telling():
            return self._it.queue.take(tensor, [int(i) for i in rows])

    def _wait(self) -> None:
        it, start = self._it, time.perf_counter()
        while not it.device.done(it.queue.stream):
            if self._cancelled:
                raise self._failed("it was cancelled")
            time.sleep(0 if time.perf_counter() - start < _SPIN_S else _PAUSE_S)

    def _drain(self) -> None:
        if self._under_way is not None:
            self._it.device.wait(self._it.queue.stream)
            self._under_way = None

    def _failed(self, why: str) -> InputError:
        return InputError(f"{self._it.target} could not run the graph: {why}")

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self._replay.forget()
        self._staged = {}
        self._it.close()
        self._under_way = None

    def __del__(self) -> None:
        if hasattr(self, "_replay"):
            self.close()


def load_session(path: Path, options: SessionOptions) -> TrtSession:
    """Load the engine of a stateless graph; its note is beside it.

    Raises BundleError for an engine that is not whole, not of this library or not for this GPU, RuntimeUnavailable
    where there is no GPU or its driver is too old.
    """
    return TrtSession(OpenEngine(path, options, steady=True), options)


def load_decoder(path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions) -> TrtDecoder:
    """Load the engine of a decoder with an empty state. Raises as `load_session` does."""
    session = TrtSession(OpenEngine(path, options, steady=False), options)
    kind = FixedDecoder if PLACES in session.inputs else TrtDecoder
    return kind(session, states, capacity)
