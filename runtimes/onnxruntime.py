"""ONNX Runtime: the embedded default, on every machine.

State tensors of a decoder stay `OrtValue`s: what one call returns as `present.*` is bound as `past.*` of the
next one, so no cache crosses into numpy between tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BundleError, InputError, RuntimeUnavailable
from edgemm.runtimes.base import (
    Array,
    SessionOptions,
    StatePort,
    StepFeeds,
    TensorPort,
    Value,
    as_numpy,
    cast_to,
    check_feeds,
    require_states,
)

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"onnxruntime cannot be loaded: {error}", hint="run: pip install onnxruntime"
        ) from error
    return onnxruntime


def _load(path: Path, options: SessionOptions) -> Any:
    ort = _ort()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    if options.int8_weights and options.exact:
        # Weights are dequantized once, at load: the fused operator has no fast form with fp32 activations.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    elif options.int8_weights:
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load {path.name}: {_first_line(error)}",
            hint="run: edgemm inspect on the bundle, or choose another --runtime",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300]


def _ports(nodes: Any) -> dict[str, TensorPort]:
    return {
        n.name: TensorPort(n.name, _DTYPES[n.type], tuple(d if isinstance(d, int) else -1 for d in n.shape))
        for n in nodes
    }


class OrtValueHandle:
    """An `OrtValue` that a session kept."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def numpy(self) -> Array:
        array: Array = self.value.numpy()
        return array


class OrtSession:
    """See `edgemm.runtimes.base.Session`."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        self._session = _load(path, options)
        self._run_options: Any = None
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            _bind_input(binding, self.inputs[name], value)
        return _run_bound(self, binding, keep)

    def cancel(self) -> None:
        if self._run_options is not None:
            self._run_options.terminate = True

    def close(self) -> None:
        self._session = None


def _bind_input(binding: Any, port: TensorPort, value: Value) -> None:
    if isinstance(value, OrtValueHandle):
        binding.bind_ortvalue_input(port.name, value.value)
    else:
        array = cast_to(port, as_numpy(value))
        binding.bind_ortvalue_input(port.name, _ort().OrtValue.ortvalue_from_numpy(array))


def _run_bound(owner: OrtSession, binding: Any, keep: Collection[str]) -> dict[str, Value]:
    for name in owner.outputs:
        binding.bind_output(name, "cpu")
    owner._run_options = _ort().RunOptions()
    try:
        owner._session.run_with_iobinding(binding, owner._run_options)
    except Exception as error:
        raise InputError(f"onnxruntime could not run the graph: {_first_line(error)}") from error
    finally:
        owner._run_options = None
    values = zip(owner.outputs, binding.get_outputs(), strict=True)
    return {n: OrtValueHandle(v) if n in keep else v.numpy() for n, v in values}


class OrtDecoder:
    """See `edgemm.runtimes.base.Decoder`. Forks share the graph, and the state until they append."""

    def __init__(self, session: OrtSession, states: tuple[StatePort, ...], capacity: int) -> None:
        require_states(states, session.inputs)
        self._session = session
        self._states = states
        self._feeds = StepFeeds(session.inputs, capacity)
        self._past: dict[str, Value] = {}
        self._cross: dict[str, Value] = {}
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
        if cross is not None:
            self._cross = {k: v for k, v in cross.items() if k in self._session.inputs}
        past = self._past or self._empty(batch)
        kept = [s.output for s in self._states]
        values = self._session.run({**feeds, **past, **self._cross, **(extras or {})}, keep=kept)
        self._past = {s.input: values[s.output] for s in self._states}
        self._feeds.commit(feeds, batch, new)
        return as_numpy(values["logits"])

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        logits: Array = self.prefill(embeds, positions=positions, extras=extras)[:, -1]
        return logits

    def _empty(self, batch: int) -> dict[str, Value]:
        empty: dict[str, Value] = {}
        for state in self._states:
            shape = list(state.shape)
            shape[0], shape[state.growth_axis] = batch, 0
            empty[state.input] = np.zeros(shape, self._session.inputs[state.input].dtype)
        return empty

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise InputError(f"cannot truncate {self.length} positions to {length}")
        cut = {
            s.input: as_numpy(self._past[s.input]).take(range(length), axis=s.growth_axis)
            for s in self._states
            if self._past
        }
        self._past = dict(cut)
        self._feeds.mask = self._feeds.mask[:, :length]

    def fork(self, n: int) -> tuple[OrtDecoder, ...]:
        return tuple(self._copy() for _ in range(n))

    def _copy(self) -> OrtDecoder:
        twin = OrtDecoder(self._session, self._states, self.capacity)
        twin._past, twin._cross = dict(self._past), dict(self._cross)
        twin._feeds.mask = self._feeds.mask
        return twin

    def reorder(self, beam_idx: Array) -> None:
        self._past = {k: as_numpy(v).take(beam_idx, axis=0) for k, v in self._past.items()}
        self._feeds.mask = self._feeds.mask[beam_idx]

    def cancel(self) -> None:
        self._session.cancel()

    def reset(self) -> None:
        self._past, self._cross = {}, {}
        self._feeds.mask = np.zeros((1, 0), np.int64)

    def close(self) -> None:
        self.reset()


def load_session(path: Path, options: SessionOptions) -> OrtSession:
    """Load a stateless graph."""
    return OrtSession(path, options)


def load_decoder(path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions) -> OrtDecoder:
    """Load a decoder graph with an empty state."""
    return OrtDecoder(OrtSession(path, options), states, capacity)
