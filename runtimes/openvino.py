"""OpenVINO: Intel processors, graphics and neural units; the fastest here for encoders on a CPU.

A decoder graph is made stateful when it is loaded: past and present tensors become variables inside the
infer request, and no cache crosses into numpy between tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BundleError, InputError, RuntimeUnavailable, missing_extra
from edgemm.runtimes.base import (
    ALIGNMENT,
    Array,
    SessionOptions,
    Shapes,
    StatePort,
    StepFeeds,
    TensorPort,
    Value,
    alignment_of,
    as_numpy,
    cast_to,
    check_feeds,
    require_states,
)
from edgemm.runtimes.lowering.graph import Unrecognised
from edgemm.runtimes.lowering.openvino_decoder import BEAMS, lower
from edgemm.runtimes.openvino_blobs import TARGET, Blob, key_of, read_or_compile
from edgemm.runtimes.providers import require_device


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "openvino", error) from error
    return openvino


@dataclass(frozen=True)
class _Made:
    """A model to compile; `reason` says why a decoder's is not of the lowered form, if it is not."""

    model: Any
    reason: str = ""


def _config(options: SessionOptions) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.keeps_numbers:
        config |= {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "KV_CACHE_PRECISION": "f32",
        }
    return config


def _core() -> Any:
    return _openvino().Core()


def _read(path: Path, shapes: Shapes = ()) -> Any:
    try:
        model = _core().read_model(path)
        if shapes:
            model.reshape({name: list(dims) for name, dims in shapes})
        return model
    except Exception as error:
        raise _cannot_load(path, error) from error


def _compile(model: Any, path: Path, options: SessionOptions) -> Any:
    try:
        return _core().compile_model(model, options.device, _config(options))
    except Exception as error:
        raise _cannot_load(path, error) from error


def _kept(path: Path, options: SessionOptions, about: Mapping[str, Any], make: Callable[[], _Made]) -> Blob:
    """The compiled model of `make`, from the blob of an earlier time where there is one."""
    core = _core()
    _require_device(core, options.device)

    def compile_it() -> Blob:
        made = make()
        return Blob(_compile(made.model, path, options), made.reason)

    config = _config(options)
    try:
        key = key_of(core, _openvino().__version__, path, options.device, {**about, "config": config})
    except OSError as error:
        raise _cannot_load(path, error) from error
    return read_or_compile(core, key, config, compile_it)


def _require_device(core: Any, device: str) -> None:
    """Raise RuntimeUnavailable where OpenVINO does not see one of the devices that `device` names."""
    require_device(TARGET, device)
    # The processor is there. Asking for it would load the plugins of all other devices, 17 MB.
    if device == "CPU" or device.startswith("AUTO"):
        return
    present = core.available_devices
    if device not in present and device not in {p.partition(".")[0] for p in present}:
        raise RuntimeUnavailable(
            f"openvino sees no device {device}; it sees {', '.join(present)}",
            hint="install the device's driver, or choose another --device",
        )


def _cannot_load(path: Path, error: Exception) -> BundleError:
    reason = next((x for x in reversed(str(error).strip().splitlines()) if x.strip()), "")
    return BundleError(
        f"openvino {_openvino().__version__} cannot load {path.name}: {reason.strip()[:300]}",
        hint="run: edgemm inspect on the bundle, or choose --runtime onnxruntime",
    )


def _port(node: Any) -> TensorPort:
    shape = tuple(d.get_length() if d.is_static else -1 for d in node.get_partial_shape())
    return TensorPort(node.get_any_name(), np.dtype(node.get_element_type().to_dtype()), shape)


def _ports(nodes: Any) -> dict[str, TensorPort]:
    return {p.name: p for p in map(_port, nodes)}


class OvTensorHandle:
    """A tensor that a request kept. It owns its memory: the request may run again."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def numpy(self) -> Array:
        array: Array = self.tensor.data
        return array


class _Graph:
    """A compiled model that requests share, and how to compile it again.

    An inference that was interrupted leaves stale shapes in the compiled model: a later one, of any request, may then
    return outputs of the wrong size (seen with OpenVINO 2026.4). So it is compiled again before its next use.
    """

    def __init__(self, compile_it: Callable[[], Any]) -> None:
        self._compile = compile_it
        self._stale = False
        self.compiled = compile_it()

    def spoil(self) -> None:
        self._stale = True

    def fresh(self) -> Any:
        """The compiled model, compiled again if it was spoiled."""
        if self._stale:
            self.compiled, self._stale = self._compile(), False
        return self.compiled


class _Request:
    """An infer request with named feeds. It keeps what it was fed alive: OpenVINO does not copy."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self._compiled = graph.fresh()
        self.inputs = _ports(self._compiled.inputs)
        self.outputs = _ports(self._compiled.outputs)
        self.request = self._compiled.create_infer_request()
        self._alive: dict[str, Any] = {}

    def set(self, feeds: Mapping[str, Value]) -> None:
        for name, value in feeds.items():
            tensor = self._tensor(self.inputs[name], value)
            try:
                self.request.set_tensor(name, tensor)
            except RuntimeError as error:
                raise InputError(f"{name} does not fit the graph: {_last_line(error)}") from error
            self._alive[name] = tensor

    def _tensor(self, port: TensorPort, value: Value) -> Any:
        if isinstance(value, OvTensorHandle):
            return value.tensor
        array = cast_to(port, as_numpy(value))
        return _openvino().Tensor(np.array(array) if array.ndim == 0 else array)

    def infer(self) -> None:
        if self.graph.fresh() is not self._compiled:
            self._renew()
        try:
            self.request.infer()
        except Exception as error:
            self.graph.spoil()
            raise InputError(f"openvino could not run the graph: {_last_line(error)}") from error

    def _renew(self) -> None:
        """Go over to the graph that was compiled again, with the state and the inputs."""
        self._compiled = self.graph.compiled
        before, self.request = self.request, self._compiled.create_infer_request()
        held = {v.name: np.array(v.state.data) for v in before.query_state()}
        for variable in self.request.query_state():
            _set_state(variable, held[variable.name])
        for name, tensor in self._alive.items():
            self.request.set_tensor(name, tensor)


def _last_line(error: BaseException) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    return lines[-1][:300] if lines else type(error).__name__


class OvSession:
    """See `edgemm.runtimes.base.Session`."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        shapes = options.shapes
        make = partial(_kept, path, options, {"shapes": shapes}, lambda: _Made(_read(path, shapes)))
        self._request = _Request(_Graph(lambda: make().compiled))
        self.inputs = self._request.inputs
        self.outputs = self._request.outputs

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        check_feeds(self.inputs, feeds)
        self._request.set(feeds)
        self._request.infer()
        result: dict[str, Value] = {}
        for name in self.outputs:
            data = np.array(self._request.request.get_tensor(name).data)
            result[name] = OvTensorHandle(_openvino().Tensor(data)) if name in keep else data
        return result

    def cancel(self) -> None:
        self._request.request.cancel()

    def close(self) -> None:
        del self._request


def _stateful(path: Path, states: tuple[StatePort, ...], *, alignment: bool) -> _Made:
    """A decoder's model with its state inside."""
    model = _read(path)
    require_states(states, _ports(model.inputs))
    try:
        lower(model, path, states, alignment=alignment)
        return _Made(model)
    except Unrecognised as error:
        reason = str(error)
    except (LookupError, ValueError, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {_last_line(error)}"
    return _Made(_made_stateful(path, states, alignment=alignment), f"the graph is not recognised: {reason}")


def _made_stateful(path: Path, states: tuple[StatePort, ...], *, alignment: bool) -> Any:
    """The graph as it is, but for the state. It is read again: what was begun on another is given up."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    model = _read(path)
    if not alignment and ALIGNMENT in _ports(model.outputs):
        model.remove_result(model.output(ALIGNMENT).get_node())
    apply_make_stateful_transformation(model, {s.input: s.output for s in states})
    return model


class OvDecoder:
    """See `edgemm.runtimes.base.Decoder`. A fork is a request of its own with a copy of the state.

    `form` is `lowered` (`edgemm.runtimes.lowering.openvino_decoder`), or `portable` for the `reason`.
    """

    def __init__(self, graph: _Graph, states: tuple[StatePort, ...], capacity: int, reason: str = "") -> None:
        self._request = _Request(graph)
        self.form, self.reason = "portable" if reason else "lowered", reason
        self._states = states
        self._by_name = {s.input + s.output: s for s in states}
        self._feeds = StepFeeds(self._request.inputs, capacity)
        self._cross: dict[str, Value] = {}
        # Which row of the request's output stands where; None: it holds no call's output.
        self._rows: Array | None = None
        # How the next call has to put the rows of the state; None: they stay.
        self._beams: Array | None = None
        self.capacity = capacity

    @property
    def length(self) -> int:
        return self._feeds.length

    def prefill(
        self,
        embeds: Array,
        *,
        positions: Array | None = None,
        cross: Mapping[str, Value] | None = None,
        mask: Array | None = None,
        logits_indices: Array | None = None,
        extras: Mapping[str, Value] | None = None,
    ) -> Array:
        feeds = self._feeds.extend(embeds, positions, mask, logits_indices)
        batch, new = embeds.shape[:2]
        inputs = self._request.inputs
        if cross is not None:
            self._cross = {k: v for k, v in cross.items() if k in inputs}
            self._request.set(self._cross)
        given = {**feeds, **(extras or {})}
        if BEAMS in inputs:
            beams = np.arange(batch) if self._beams is None else self._beams
            given[BEAMS] = beams.astype(np.int32)
        # A request keeps the tensors of earlier calls, so what is absent would not be missed by it.
        check_feeds(inputs, {**given, **self._cross})
        if self.length == 0:
            self._clear(batch)
        self._request.set(given)
        self._rows = None
        try:
            self._request.infer()
        except InputError:
            self._settle()
            raise
        self._rows, self._beams = np.arange(batch), None
        self._feeds.commit(feeds, batch, new)
        return np.array(self._request.request.get_tensor("logits").data)

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        logits: Array = self.prefill(embeds, positions=positions, extras=extras)[:, -1]
        return logits

    def alignment(self) -> Array:
        last: Array | None = None
        if self._rows is not None and ALIGNMENT in self._request.outputs:
            last = self._request.request.get_tensor(ALIGNMENT).data[self._rows]
        return alignment_of(self._request.outputs, last)

    def _variables(self) -> list[tuple[StatePort, Any]]:
        return [(self._by_name[v.name], v) for v in self._request.request.query_state()]

    def _clear(self, batch: int) -> None:
        self._beams = None
        if self.form == "lowered":
            self._request.request.reset_state()
            return
        for state, variable in self._variables():
            shape = list(state.shape)
            shape[0], shape[state.growth_axis] = batch, 0
            _set_state(variable, np.zeros(shape, variable.state.data.dtype))

    def _settle(self) -> None:
        """After a call that failed on its way: layers that it has reached go back, and the rows are moved."""
        if self.length == 0:
            self._request.request.reset_state()
        elif self.form == "lowered":
            for state, variable in self._variables():
                _set_state(variable, self._held(state, variable))
        self._beams = None

    def _held(self, state: StatePort, variable: Any) -> Array:
        """What a variable is for the caller. The rows of one that a failed call has appended to are moved already."""
        data: Array = variable.state.data
        appended = data.shape[state.growth_axis] > self.length
        if self._beams is not None and not appended:
            data = data.take(self._beams, axis=0)
        return data.take(range(self.length), axis=state.growth_axis) if appended else data

    def truncate(self, length: int) -> None:
        self._feeds.require(length)
        if length < self.length:
            for state, variable in self._variables():
                _set_state(variable, self._held(state, variable).take(range(length), axis=state.growth_axis))
            self._beams = None
        self._feeds.truncate(length)

    def fork(self, n: int) -> tuple[OvDecoder, ...]:
        return tuple(self._copy() for _ in range(n))

    def _copy(self) -> OvDecoder:
        twin = OvDecoder(self._request.graph, self._states, self.capacity, self.reason)
        if self.length:
            held = {v.name: np.array(self._held(s, v)) for s, v in self._variables()}
            for _, variable in twin._variables():
                _set_state(variable, held[variable.name])
        fixed = {k: OvTensorHandle(t) for k, t in self._request._alive.items()}
        twin._request.set(fixed)
        twin._cross = dict(self._cross)
        twin._feeds.mask = self._feeds.mask
        return twin

    def reorder(self, beam_idx: Array) -> None:
        if self.form == "lowered" and len(beam_idx) == len(self._feeds.mask):
            # The next call does it, inside its attention.
            self._beams = beam_idx if self._beams is None else self._beams[beam_idx]
        else:
            for state, variable in self._variables():
                _set_state(variable, self._held(state, variable).take(beam_idx, axis=0))
            self._beams = None
        self._rows = None if self._rows is None else self._rows[beam_idx]
        self._feeds.mask = self._feeds.mask[beam_idx]

    def cancel(self) -> None:
        self._request.request.cancel()

    def reset(self) -> None:
        self._request.request.reset_state()
        self._cross, self._rows, self._beams = {}, None, None
        self._feeds.mask = np.zeros((1, 0), np.int64)

    def close(self) -> None:
        del self._request


def _set_state(variable: Any, data: Array) -> None:
    variable.state = _openvino().Tensor(np.ascontiguousarray(data))


def load_session(path: Path, options: SessionOptions) -> OvSession:
    """Compile a stateless graph."""
    return OvSession(path, options)


def load_decoder(path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions) -> OvDecoder:
    """Compile a decoder graph with its state inside, empty: lowered where its form is known."""
    if options.device.startswith("NPU"):
        raise BundleError(
            f"{path.name} grows with every token, and an NPU takes graphs of fixed shapes alone",
            hint="run the decoder elsewhere: --device CPU or GPU, or --runtime onnxruntime",
        )
    about = {"states": [asdict(s) for s in states], "alignment": options.alignment}
    make = partial(_kept, path, options, about, partial(_stateful, path, states, alignment=options.alignment))
    first = [make()]
    reason = first[0].reason
    # The first serves once: held here too, it would outlive a graph that was compiled again.
    return OvDecoder(_Graph(lambda: (first.pop() if first else make()).compiled), states, capacity, reason)
