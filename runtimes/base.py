"""What every runtime is: a `Session` for stateless graphs, a `Decoder` for those that carry state.

Arrays go in as numpy and come out as numpy, except where the caller asks to keep an output inside the
runtime (`keep`): it then gets an opaque `DeviceValue`, which it may feed to a session or a decoder of the
same runtime without a copy, or turn into numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import State
from edgemm.errors import BundleError, ContextFull, InputError

Array = NDArray[Any]


@runtime_checkable
class DeviceValue(Protocol):
    """A tensor that lives inside a runtime."""

    def numpy(self) -> Array:
        """A numpy copy or view of it."""
        ...


Value = Array | DeviceValue
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names of inputs, each with its dimensions."""


def as_numpy(value: Value) -> Array:
    """`value` as a numpy array, wherever it lives."""
    return value if isinstance(value, np.ndarray) else value.numpy()


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is loaded. `threads` 0 lets the runtime decide.

    `exact` keeps the graph's own numbers; without it a runtime may compute in reduced precision or
    quantize activations as they come, which is faster and makes runtimes differ. None leaves it to the component: exact
    unless its weights are int8 or int4. `int8_weights` says that
    the graph's matrices are int8 in storage only: this runtime computes with them in floating point. Without
    `alignment` a decoder may drop that output (see `Decoder.alignment`), which lets a runtime fuse its attention.
    `shapes` are the inputs' for a device that takes fixed shapes alone. Without `microbench` the runtime of a component
    is chosen by rule, not by a trial (see `edgemm.runtimes.choice`). `cuda_graphs` lets a GPU replay calls whose shapes
    are those of the call before.
    """

    device: str = "CPU"
    threads: int = 0
    exact: bool | None = None
    int8_weights: bool = False
    alignment: bool = True
    shapes: Shapes = ()
    microbench: bool = True
    cuda_graphs: bool = True

    @property
    def keeps_numbers(self) -> bool:
        """`exact`, which is so where nothing is said."""
        return self.exact is not False


@dataclass(frozen=True)
class TensorPort:
    """An input or output of a loaded graph. A dimension of -1 is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StatePort:
    """A tensor that a decoder carries: [B, heads, length, dim], growing along `growth_axis`."""

    input: str
    output: str
    shape: tuple[int, ...]
    growth_axis: int


def state_port(state: State) -> StatePort:
    """A manifest's state tensor; sizes that vary are -1."""
    shape = tuple(d.min if d.min == d.max else -1 for d in state.shape)
    return StatePort(state.input, state.output, shape, 2 if state.growth_axis is None else state.growth_axis)


class Session(Protocol):
    """A loaded graph without state. One thread at a time."""

    inputs: Mapping[str, TensorPort]
    outputs: Mapping[str, TensorPort]

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        """Run once. Floating-point feeds are cast to the graph's type.

        Raises InputError for a missing or unknown input or a shape that the graph does not take.
        """
        ...

    def cancel(self) -> None:
        """Make a `run` that is under way in another thread stop soon."""
        ...

    def close(self) -> None:
        """Free the graph; the session can't be used afterwards."""
        ...


class Decoder(Protocol):
    """A decoder graph and its state, which stays inside the runtime between calls."""

    capacity: int

    @property
    def length(self) -> int:
        """Positions in the state."""
        ...

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
        """Append `embeds` [B, S, hidden]; return logits [B, K, V], by default of the last position.

        `positions` default to `length`, `length + 1`, …; `mask` [B, S] is 0 where an embedding is
        padding; `cross` is given with the first call and stays until `reset`; `extras` are inputs of
        this call alone. Raises ContextFull where `capacity` would be passed.
        """
        ...

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        """Append one embedding per row, [B, 1, hidden]; return logits [B, V]."""
        ...

    def alignment(self) -> Array:
        """Cross-attention weights of the positions that the last call appended, [B, heads, S, T'].

        They are fetched from the runtime when they are asked for; `reorder` moves their rows too. Raises BundleError
        where the graph has no such output, InputError where this decoder (a fork, say) has appended nothing since
        its last `reset`.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        ...

    def fork(self, n: int) -> tuple[Decoder, ...]:
        """`n` decoders that start from this state and go their own ways."""
        ...

    def reorder(self, beam_idx: Array) -> None:
        """Row i of the state becomes what row `beam_idx[i]` was."""
        ...

    def cancel(self) -> None:
        """Make a call that is under way in another thread stop soon."""
        ...

    def reset(self) -> None:
        """Forget everything, cross-attention included."""
        ...

    def close(self) -> None:
        """Free the state, and the graph with its last user."""
        ...


def check_feeds(ports: Mapping[str, TensorPort], feeds: Mapping[str, Value]) -> None:
    """Raise InputError unless `feeds` names exactly the graph's inputs."""
    missing = sorted(ports.keys() - feeds.keys())
    unknown = sorted(feeds.keys() - ports.keys())
    if missing or unknown:
        what = [f"lacks {', '.join(missing)}"] if missing else []
        what += [f"does not know {', '.join(unknown)}"] if unknown else []
        raise InputError(f"the graph takes {', '.join(ports)}; this call {' and '.join(what)}")


def cast_to(port: TensorPort, array: Array) -> Array:
    """`array` contiguous and, where both are floating point, in the port's type, whose range it is brought into.

    Masks hold the smallest number of their type for what is not seen; it must stay finite in a narrower one.
    Raises InputError where types differ otherwise or a fixed dimension does not match.
    """
    if array.dtype != port.dtype:
        if not (array.dtype.kind == "f" and port.dtype.kind == "f"):
            raise InputError(f"{port.name} takes {port.dtype}, not {array.dtype}")
        range_ = np.finfo(port.dtype)
        if range_.max < np.finfo(array.dtype).max:
            array = np.clip(array, range_.min, range_.max)
        array = array.astype(port.dtype)
    fits = array.ndim == len(port.shape) and all(
        want in (-1, got) for want, got in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{port.name} takes {list(port.shape)}, not {list(array.shape)}")
    # ascontiguousarray makes a scalar a vector.
    return np.ascontiguousarray(array).reshape(array.shape)


class StepFeeds:
    """The inputs of a decoder call that follow from what was appended before."""

    def __init__(self, ports: Mapping[str, TensorPort], capacity: int) -> None:
        self._ports = ports
        self.capacity = capacity
        self.mask: Array = np.zeros((1, 0), np.int64)

    @property
    def length(self) -> int:
        return int(self.mask.shape[1])

    def extend(
        self,
        embeds: Array,
        positions: Array | None,
        mask: Array | None,
        logits_indices: Array | None,
    ) -> dict[str, Array]:
        """Feeds for appending `embeds`; `commit` makes the longer mask the state's own."""
        batch, new = self._rows_and_new(embeds, mask)
        past = self.length
        if past + new > self.capacity:
            raise ContextFull(
                f"{past} + {new} positions do not fit the decoder's {self.capacity}",
                hint="shorten the input, ask for fewer new tokens, or use fewer pictures",
            )
        old = self.mask if past else np.zeros((batch, 0), np.int64)
        fresh = np.ones((batch, new), np.int64) if mask is None else mask.astype(np.int64)
        if positions is None:
            positions = np.broadcast_to(np.arange(past, past + new), (batch, new))
        if logits_indices is None:
            logits_indices = np.array([new - 1])
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.concatenate([old, fresh], axis=1),
            "position_ids": np.ascontiguousarray(positions, np.int64),
            "logits_indices": np.ascontiguousarray(logits_indices, np.int64),
        }
        return {k: cast_to(self._ports[k], v) for k, v in feeds.items() if k in self._ports}

    def require(self, length: int) -> None:
        """Raise InputError where there are fewer than `length` positions, or `length` is negative."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot truncate {self.length} positions to {length}")

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        self.require(length)
        self.mask = self.mask[:, :length]

    def _rows_and_new(self, embeds: Array, mask: Array | None) -> tuple[int, int]:
        rows = self.mask.shape[0] if self.length else None
        if embeds.ndim != 3 or not embeds.shape[1] or (rows is not None and embeds.shape[0] != rows):
            wanted = "batch" if rows is None else rows
            raise InputError(f"inputs_embeds takes [{wanted}, new, hidden] with new ≥ 1, not {list(embeds.shape)}")
        batch, new = embeds.shape[:2]
        if mask is not None and mask.shape != (batch, new):
            raise InputError(f"mask takes {[batch, new]}, not {list(mask.shape)}")
        return batch, new

    def commit(self, feeds: Mapping[str, Array], batch: int, new: int) -> None:
        """Remember the mask of a call that went through."""
        self.mask = feeds.get("attention_mask", np.ones((batch, self.length + new), np.int64))


ALIGNMENT = "alignment"
"""The output of decoders that `Decoder.alignment` reads."""


def alignment_of(outputs: Mapping[str, TensorPort], last: Value | None) -> Array:
    """The numbers of `Decoder.alignment`, `last` of a graph with `outputs`; its errors."""
    if ALIGNMENT not in outputs:
        raise BundleError(
            "the decoder graph has no output alignment: it can't say when a word was said",
            hint="export the checkpoint again; its generation_config.json needs alignment_heads",
        )
    if last is None:
        raise InputError("the decoder has appended nothing yet: there is no alignment")
    return as_numpy(last)


def require_states(states: tuple[StatePort, ...], ports: Mapping[str, TensorPort]) -> None:
    """Raise BundleError where the manifest's state tensors are not inputs of the graph."""
    absent = [s.input for s in states if s.input not in ports]
    if absent:
        raise BundleError(f"the decoder graph has no input {', '.join(absent[:3])}", hint="export it again")
