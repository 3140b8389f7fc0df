"""A lowered decoder on ONNX Runtime: one buffer per state tensor, bound as past and as present.

It serves one row without padding. What it does not serve (batches, padding, given positions where the rotary tables
are inside the operator) moves the state to the portable graph, which is loaded then, until `reset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import EdgemmError
from edgemm.runtimes.base import (
    Array,
    SessionOptions,
    StatePort,
    StepFeeds,
    Value,
    alignment_of,
    as_numpy,
    cast_to,
    check_feeds,
)
from edgemm.runtimes.lowering.attention import SEQLENS, TOTAL
from edgemm.runtimes.lowering.cache import lowered_decoder
from edgemm.runtimes.onnxruntime import OrtDecoder, OrtSession

_LEAST = 512


@dataclass
class Graphs:
    """The two sessions that forks share. The portable one is loaded when it is first needed."""

    lowered: OrtSession
    path: Path
    options: SessionOptions
    _portable: OrtSession | None = field(default=None)

    def portable(self) -> OrtSession:
        """The graph as it was exported."""
        if self._portable is None:
            self._portable = OrtSession(self.path, self.options)
        return self._portable


@dataclass
class _Bound:
    """A binding whose inputs are overwritten in place."""

    binding: Any
    feeds: dict[str, Array]
    logits: Array


class BoundDecoder:
    """See `edgemm.runtimes.base.Decoder`."""

    def __init__(self, graphs: Graphs, states: tuple[StatePort, ...], capacity: int) -> None:
        self._graphs = graphs
        self._states = states
        self.capacity = capacity
        ports = graphs.lowered.inputs
        self._own = {s.input for s in states} | {SEQLENS, TOTAL}
        self._vocabulary = graphs.lowered.outputs["logits"].shape[2]
        self._feeds = StepFeeds({k: p for k, p in ports.items() if k not in self._own}, capacity)
        self._buffers: dict[str, Array] = {}
        self._last, self._total = np.zeros(1, np.int32), np.zeros(1, np.int32)
        self._one: _Bound | None = None
        self._portable: OrtDecoder | None = None

    @property
    def length(self) -> int:
        return self._portable.length if self._portable else self._feeds.length

    @property
    def form(self) -> str:
        """`lowered`, or `portable` from the call on that the lowered graph did not serve."""
        return "portable" if self._portable else "lowered"

    @property
    def reason(self) -> str:
        """Why the form is portable."""
        return "the lowered graph serves one row without padding" if self._portable else ""

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
        if self._portable is None:
            feeds = self._feeds.extend(embeds, positions, mask, logits_indices)
            if self._serves(embeds, positions, mask):
                return self._append(feeds | self._cast(extras), embeds.shape[1])
            self._portable = self._moved()
        return self._portable.prefill(
            embeds, positions=positions, cross=cross, mask=mask, logits_indices=logits_indices, extras=extras
        )

    def step(
        self, embeds: Array, *, positions: Array | None = None, extras: Mapping[str, Value] | None = None
    ) -> Array:
        logits: Array = self.prefill(embeds, positions=positions, extras=extras)[:, -1]
        return logits

    def alignment(self) -> Array:
        if self._portable is None:
            return alignment_of(self._graphs.lowered.outputs, None)
        return self._portable.alignment()

    def _serves(self, embeds: Array, positions: Array | None, mask: Array | None) -> bool:
        past, new = self._feeds.length, embeds.shape[1]
        counted = positions is None or np.array_equal(positions, np.arange(past, past + new)[None])
        whole = mask is None or bool(np.all(mask))
        return embeds.shape[0] == 1 and whole and (counted or "position_ids" in self._graphs.lowered.inputs)

    def _cast(self, extras: Mapping[str, Value] | None) -> dict[str, Array]:
        ports = self._graphs.lowered.inputs
        return {k: cast_to(ports[k], as_numpy(v)) if k in ports else as_numpy(v) for k, v in (extras or {}).items()}

    def _append(self, feeds: dict[str, Array], new: int) -> Array:
        ports = self._graphs.lowered.inputs
        check_feeds({k: p for k, p in ports.items() if k not in self._own}, feeds)
        total = self._feeds.length + new
        self._reserve(total)
        self._last[0], self._total[0] = total - 1, total
        logits = self._run_one(feeds) if new == 1 and len(feeds["logits_indices"]) == 1 else self._run(feeds).logits
        self._feeds.commit({}, 1, new)
        return logits

    def _run_one(self, feeds: dict[str, Array]) -> Array:
        if self._one is None:
            self._one = self._bind({k: v.copy() for k, v in feeds.items()})
        for name, array in self._one.feeds.items():
            array[...] = feeds[name]
        self._graphs.lowered.run_binding(self._one.binding)
        return self._one.logits.copy()

    def _run(self, feeds: dict[str, Array]) -> _Bound:
        bound = self._bind(feeds)
        self._graphs.lowered.run_binding(bound.binding)
        return bound

    def _bind(self, feeds: dict[str, Array]) -> _Bound:
        binding = self._graphs.lowered.new_binding()
        logits = np.empty((1, len(feeds["logits_indices"]), self._vocabulary), np.float32)
        lengths = {SEQLENS: self._last, TOTAL: self._total}
        for name, array in {**feeds, **self._buffers, **lengths}.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        outputs = {"logits": logits} | {s.output: self._buffers[s.input] for s in self._states}
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return _Bound(binding, feeds, logits)

    def _reserve(self, length: int) -> None:
        """Make the buffers at least `length` long, doubling them, so that a long context costs memory when used."""
        now = next((b.shape[2] for b in self._buffers.values()), 0)
        if now >= length:
            return
        self._one = None
        self._buffers = self._held(min(self.capacity, max(length, 2 * now, _LEAST)))

    def _held(self, length: int) -> dict[str, Array]:
        """Buffers of `length` positions with the state's in front."""
        buffers = {}
        for state in self._states:
            buffers[state.input] = np.zeros((1, state.shape[1], length, state.shape[3]), np.float32)
            if self.length:
                buffers[state.input][:, :, : self.length] = self._buffers[state.input][:, :, : self.length]
        return buffers

    def _moved(self) -> OrtDecoder:
        """The same state on the portable graph."""
        portable = OrtDecoder(self._graphs.portable(), self._states, self.capacity)
        if self.length:
            portable.adopt(dict(self._held(self.length)), self._feeds.mask)
        self._buffers, self._one = {}, None
        return portable

    def truncate(self, length: int) -> None:
        if self._portable and length:
            self._portable.truncate(length)
            return
        self._feeds.truncate(length)
        if length == 0:
            self.reset()

    def fork(self, n: int) -> tuple[BoundDecoder, ...]:
        return tuple(self._copy() for _ in range(n))

    def _copy(self) -> BoundDecoder:
        twin = BoundDecoder(self._graphs, self._states, self.capacity)
        twin._feeds.mask = self._feeds.mask
        if self._portable:
            (twin._portable,) = self._portable.fork(1)
        elif self._buffers:
            twin._buffers = self._held(next(iter(self._buffers.values())).shape[2])
        return twin

    def reorder(self, beam_idx: Array) -> None:
        if self._portable is None and list(beam_idx) == [0]:
            return
        if self._portable is None:
            self._portable = self._moved()
        self._portable.reorder(beam_idx)

    def trial(self) -> bool:
        """Whether the kernels take the graph's sizes and give finite numbers: they check only when they run."""
        ports = self._graphs.lowered.inputs
        made = {
            name: np.zeros([n if n > 0 else 1 if axis == 0 else 2 for axis, n in enumerate(port.shape)], port.dtype)
            for name, port in ports.items()
            if name not in self._own
        }
        embeds, positions = made.pop("inputs_embeds") + 1, made.pop("position_ids", None)
        made.pop("logits_indices")
        logits = self.prefill(embeds, positions=positions, extras=made)
        self.reset()
        return bool(np.isfinite(logits).all())

    def cancel(self) -> None:
        self._graphs.lowered.cancel()
        if self._portable:
            self._portable.cancel()

    def reset(self) -> None:
        self._portable = None
        self._feeds.mask = np.zeros((1, 0), np.int64)

    def close(self) -> None:
        self.reset()
        self._buffers, self._one = {}, None


def load_bound(
    path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions
) -> tuple[BoundDecoder | None, str]:
    """The decoder graph at `path` in its lowered form, or None and the reason why not."""
    found = lowered_decoder(path, states, capacity)
    if found.path is None:
        return None, found.reason
    try:
        decoder = BoundDecoder(Graphs(OrtSession(found.path, options), path, options), states, capacity)
        works = decoder.trial()
    except EdgemmError as error:
        return None, f"onnxruntime does not take the lowered graph: {error.message}"
    return (decoder, "") if works else (None, "the lowered graph gives no finite numbers")
