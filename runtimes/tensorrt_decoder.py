"""Decoders on TensorRT: the state stays on the GPU, growing with every call or in buffers of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np

from edgemm.runtimes.base import (
    ALIGNMENT,
    Array,
    DeviceValue,
    StatePort,
    StepFeeds,
    Value,
    alignment_of,
    as_numpy,
    require_states,
)
from edgemm.runtimes.device_memory import DeviceTensor
from edgemm.runtimes.lowering.fixed_state import PLACES, buffer_size

if TYPE_CHECKING:
    from edgemm.runtimes.tensorrt import TrtSession


class TrtDecoder:
    """See `edgemm.runtimes.base.Decoder`. Forks share the engine, and the state until they append."""

    def __init__(self, session: TrtSession, states: tuple[StatePort, ...], capacity: int) -> None:
        require_states(states, session.inputs)
        self._session = session
        self._states = states
        self._feeds = StepFeeds(session.inputs, capacity)
        self._past: dict[str, DeviceTensor] = {}
        self._cross: dict[str, DeviceTensor] = {}
        self._alignment: DeviceTensor | None = None
        self.capacity = capacity
        self._open = True
        session.users += 1

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
            self._cross = {k: self._session.upload(k, v) for k, v in cross.items() if k in self._session.inputs}
        # An engine takes a dimension of one name at one size, where other runtimes broadcast one sound to many beams.
        self._cross = {k: self._rows(v, batch) for k, v in self._cross.items()}
        values = self._run({**feeds, **self._cross, **(extras or {})}, batch, new)
        self._alignment = _tensor(values[ALIGNMENT]) if ALIGNMENT in values else None
        self._feeds.commit(feeds, batch, new)
        return as_numpy(values["logits"])

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        logits: Array = self.prefill(embeds, positions=positions, extras=extras)[:, -1]
        return logits

    def alignment(self) -> Array:
        return alignment_of(self._session.outputs, self._alignment)

    def _run(self, feeds: Mapping[str, Value], batch: int, new: int) -> dict[str, Value]:
        """The outputs of a call that appends `new` positions to the state."""
        past: Mapping[str, DeviceValue] = self._past or self._empty(batch)
        values = self._session.run({**feeds, **past}, keep=self._kept)
        self._past = {s.input: _tensor(values[s.output]) for s in self._states}
        return values

    @property
    def _kept(self) -> list[str]:
        """Outputs that stay on the GPU."""
        return [*(s.output for s in self._states), *({ALIGNMENT} & self._session.outputs.keys())]

    def _rows(self, tensor: DeviceTensor, batch: int) -> DeviceTensor:
        if tensor.shape[0] == batch or tensor.shape[0] != 1:
            return tensor
        return self._session.take(tensor, np.zeros(batch, np.int64))

    def _empty(self, batch: int) -> dict[str, DeviceTensor]:
        empty = {}
        for state in self._states:
            shape = list(state.shape)
            shape[0], shape[state.growth_axis] = batch, 0
            empty[state.input] = self._session.empty(state.input, tuple(shape))
        return empty

    def truncate(self, length: int) -> None:
        self._feeds.require(length)
        self._cut(length)
        self._feeds.truncate(length)

    def _cut(self, length: int) -> None:
        axes = {s.input: s.growth_axis for s in self._states}
        self._past = {k: self._session.head(v, length, axes[k]) for k, v in self._past.items()}

    def fork(self, n: int) -> tuple[TrtDecoder, ...]:
        return tuple(self._copy() for _ in range(n))

    def _copy(self) -> Self:
        twin = type(self)(self._session, self._states, self.capacity)
        twin._past, twin._cross = dict(self._past), dict(self._cross)
        twin._feeds.mask = self._feeds.mask
        return twin

    def reorder(self, beam_idx: Array) -> None:
        self._past = {k: self._session.take(v, beam_idx) for k, v in self._past.items()}
        if self._alignment is not None:
            self._alignment = self._session.take(self._alignment, beam_idx)
        self._feeds.mask = self._feeds.mask[beam_idx]

    def cancel(self) -> None:
        self._session.cancel()

    def reset(self) -> None:
        self._past, self._cross, self._alignment = {}, {}, None
        self._feeds.mask = np.zeros((1, 0), np.int64)

    def close(self) -> None:
        self.reset()
        if self._open:
            self._open = False
            self._session.users -= 1
            if not self._session.users:
                self._session.close()


class FixedDecoder(TrtDecoder):
    """A decoder over buffers of a fixed size (`lowering.fixed_state`), which double when they are full.

    A call reads one set of buffers and writes another: TensorRT may not write where it reads. The two take turns, so
    that the same two CUDA graphs serve every token of a size.
    """

    def __init__(self, session: TrtSession, states: tuple[StatePort, ...], capacity: int) -> None:
        super().__init__(session, states, capacity)
        self._spare: dict[str, DeviceTensor] = {}
        self._shared = False

    def _run(self, feeds: Mapping[str, Value], batch: int, new: int) -> dict[str, Value]:
        length = self.length
        past = self._room(batch, length + new)
        size = past[self._states[0].input].shape[self._states[0].growth_axis]
        mask = np.zeros((batch, size), np.int64)
        mask[:, : length + new] = as_numpy(feeds["attention_mask"])
        places = np.arange(length, length + new)
        fixed = {**feeds, **past, "attention_mask": mask, PLACES: places}
        spare = self._spare or {k: self._session.empty(k, v.shape) for k, v in past.items()}
        into = {s.output: spare[s.input] for s in self._states}
        values = self._session.run(fixed, keep=self._kept, into=into)
        # What a fork still reads is not written to.
        self._past, self._spare, self._shared = spare, {} if self._shared else past, False
        return values

    def _room(self, batch: int, length: int) -> dict[str, DeviceTensor]:
        """Buffers for `length` positions, with the state in them. What is not written yet is 0: masked, but read."""
        first = self._states[0]
        past = self._past
        if not past or past[first.input].shape[0] != batch:
            past = self._empty(batch)
        if past[first.input].shape[first.growth_axis] >= length:
            return past
        size = buffer_size(length, self._session.most(first.input, first.growth_axis))
        grown = {s.input: self._session.longer(past[s.input], size, s.growth_axis) for s in self._states}
        self._past, self._spare, self._shared = grown, {}, False
        return grown

    def _cut(self, length: int) -> None:
        """What lies behind is masked, and written over."""

    def _copy(self) -> Self:
        self._shared = True
        twin = super()._copy()
        twin._shared = True
        return twin

    def reorder(self, beam_idx: Array) -> None:
        super().reorder(beam_idx)
        self._spare, self._shared = {}, False

    def reset(self) -> None:
        super().reset()
        self._spare, self._shared = {}, False


def _tensor(value: Value) -> DeviceTensor:
    assert isinstance(value, DeviceTensor)
    return value
