"""ONNX Runtime: the embedded default, on every machine.

State tensors of a decoder stay `OrtValue`s: what one call returns as `present.*` is bound as `past.*` of the
next one, so no cache crosses into numpy between tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BundleError, InputError, RuntimeUnavailable
from edgemm.runtimes import providers
from edgemm.runtimes.base import (
    ALIGNMENT,
    Array,
    Decoder,
    SessionOptions,
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
from edgemm.runtimes.lowering import processor

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


def _load(path: Path, options: SessionOptions, *, plans_memory: bool, integers: bool = False) -> Any:
    ort = _ort()
    settings = ort.SessionOptions()
    settings.enable_mem_pattern = plans_memory
    settings.log_severity_level = 3
    settings.intra_op_num_threads = options.threads
    # Threads wait for their next work without sleeping, but only while a graph runs: the camera gets the rest.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.int8_weights and options.keeps_numbers:
        # Weights are dequantized once, at load: the fused operator has no fast form with fp32 activations.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    elif options.int8_weights:
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if integers and processor.saturates():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    wanted = providers.requested(ort, options.device, exact=options.keeps_numbers)
    if options.device != providers.CPU:
        settings.add_session_config_entry(providers.RECORD_KEY, "1")
    try:
        session = ort.InferenceSession(str(path), settings, providers=wanted)
    except Exception as error:
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load {path.name}: {_first_line(error)}",
            hint="run: edgemm inspect on the bundle, or choose another --runtime",
        ) from error
    providers.require_in_use(ort, options.device, session)
    return session


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
    """See `edgemm.runtimes.base.Session`.

    `form` is `portable` or `lowered`; `reason` says why the graph was not lowered, where that was wanted. With
    `plans_memory` one block for all that a run computes is planned and kept, for each size of the inputs.
    """

    def __init__(
        self,
        path: Path,
        options: SessionOptions,
        *,
        plans_memory: bool = True,
        form: str = "portable",
        reason: str = "",
    ) -> None:
        self._session = _load(path, options, plans_memory=plans_memory, integers=form == "lowered")
        self.form, self.reason = form, reason
        self._run_options: Any = None
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        # Held until the run is over: older bindings (1.24) don't keep the arrays that they read from.
        _held = [_bind_input(binding, self.inputs[name], value) for name, value in feeds.items()]
        return _run_bound(self, binding, keep)

    def cancel(self) -> None:
        if self._run_options is not None:
            self._run_options.terminate = True

    def new_binding(self) -> Any:
        """An `IOBinding` of this session."""
        return self._session.io_binding()

    def run_binding(self, binding: Any) -> None:
        """Run with everything bound. Raises InputError where the graph cannot run so, or `cancel` was called."""
        self._run_options = _ort().RunOptions()
        # What it is anyway; the bindings look for it, and a missing one costs them an exception at every call.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise InputError(f"onnxruntime could not run the graph: {_first_line(error)}") from error
        finally:
            self._run_options = None

    def close(self) -> None:
        self._session = None


def _bind_input(binding: Any, port: TensorPort, value: Value) -> Any:
    if isinstance(value, OrtValueHandle):
        bound = value.value
    else:
        bound = _ort().OrtValue.ortvalue_from_numpy(cast_to(port, as_numpy(value)))
    binding.bind_ortvalue_input(port.name, bound)
    return bound


def _run_bound(owner: OrtSession, binding: Any, keep: Collection[str]) -> dict[str, Value]:
    for name in owner.outputs:
        binding.bind_output(name, "cpu")
    owner.run_binding(binding)
    values = zip(owner.outputs, binding.get_outputs(), strict=True)
    return {n: OrtValueHandle(v) if n in keep else v.numpy() for n, v in values}


class OrtDecoder:
    """See `edgemm.runtimes.base.Decoder`. Forks share the graph, and the state until they append.

    `form` is `portable`; `reason` says why the graph was not lowered, where that was wanted.
    """

    form = "portable"

    def __init__(self, session: OrtSession, states: tuple[StatePort, ...], capacity: int, reason: str = "") -> None:
        require_states(states, session.inputs)
        self.reason = reason
        self._session = session
        self._states = states
        self._feeds = StepFeeds(session.inputs, capacity)
        self._past: dict[str, Value] = {}
        self._cross: dict[str, Value] = {}
        self._alignment: Value | None = None
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
        kept = [*(s.output for s in self._states), ALIGNMENT]
        values = self._session.run({**feeds, **past, **self._cross, **(extras or {})}, keep=kept)
        self._past = {s.input: values[s.output] for s in self._states}
        self._alignment = values.get(ALIGNMENT)
        self._feeds.commit(feeds, batch, new)
        return as_numpy(values["logits"])

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        logits: Array = self.prefill(embeds, positions=positions, extras=extras)[:, -1]
        return logits

    def alignment(self) -> Array:
        return alignment_of(self._session.outputs, self._alignment)

    def _empty(self, batch: int) -> dict[str, Value]:
        empty: dict[str, Value] = {}
        for state in self._states:
            shape = list(state.shape)
            shape[0], shape[state.growth_axis] = batch, 0
            empty[state.input] = np.zeros(shape, self._session.inputs[state.input].dtype)
        return empty

    def adopt(self, past: dict[str, Value], mask: Array) -> None:
        """Go on from a state that was computed elsewhere: tensors by input name, and which positions count."""
        self._past, self._feeds.mask = past, mask

    def truncate(self, length: int) -> None:
        self._feeds.require(length)
        cut = {
            s.input: as_numpy(self._past[s.input]).take(range(length), axis=s.growth_axis)
            for s in self._states
            if self._past
        }
        self._past = dict(cut)
        self._feeds.truncate(length)

    def fork(self, n: int) -> tuple[OrtDecoder, ...]:
        return tuple(self._copy() for _ in range(n))

    def _copy(self) -> OrtDecoder:
        twin = OrtDecoder(self._session, self._states, self.capacity, self.reason)
        twin._past, twin._cross = dict(self._past), dict(self._cross)
        twin._feeds.mask = self._feeds.mask
        return twin

    def reorder(self, beam_idx: Array) -> None:
        self._past = {k: as_numpy(v).take(beam_idx, axis=0) for k, v in self._past.items()}
        if self._alignment is not None:
            self._alignment = as_numpy(self._alignment).take(beam_idx, axis=0)
        self._feeds.mask = self._feeds.mask[beam_idx]

    def cancel(self) -> None:
        self._session.cancel()

    def reset(self) -> None:
        self._past, self._cross, self._alignment = {}, {}, None
        self._feeds.mask = np.zeros((1, 0), np.int64)

    def close(self) -> None:
        self.reset()


def load_session(path: Path, options: SessionOptions) -> OrtSession:
    """Load a stateless graph. Its activations are large beside its calls: a plan costs 115 MB for a ViT-B at 512 px.

    Unless `options.exact`, one with int8 weights is lowered to the form that is fastest here
    (`edgemm.runtimes.lowering.encoder`); the session's `form` and `reason` say what was done.
    """
    if options.keeps_numbers or options.device != "CPU":
        return OrtSession(path, options, plans_memory=False)
    from edgemm.runtimes.lowering.cache import lowered_encoder

    # What int8 stays weights alone is dequantized once, at load, not at every call.
    exact = replace(options, exact=True)
    found = lowered_encoder(path)
    if found.path is None:
        return OrtSession(path, exact, plans_memory=False, reason=found.reason)
    try:
        return OrtSession(found.path, replace(exact, int8_weights=True), plans_memory=False, form="lowered")
    except BundleError as error:
        return OrtSession(path, exact, plans_memory=False, reason=error.message)


def load_decoder(path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions) -> Decoder:
    """Load a decoder graph with an empty state.

    Unless `options.exact`, the graph is lowered to the form that is fastest here (`edgemm.runtimes.lowering`) where it
    is recognised; the decoder's `form` and `reason` say what was done.
    """
    if options.keeps_numbers or options.device != "CPU":
        return OrtDecoder(OrtSession(path, options), states, capacity)
    from edgemm.runtimes.lowering.bound import load_bound

    bound, reason = load_bound(path, states, capacity, options)
    return bound or OrtDecoder(OrtSession(path, options), states, capacity, reason)
