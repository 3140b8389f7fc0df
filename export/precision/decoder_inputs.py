"""What a decoder's matrices multiply when the task runs on real examples: their second moments.

The fp32 bundle does its task on the examples, prompt and answer, with a decoder that also gives out the activations
asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemm.bundle.opening import open_bundle
from edgemm.export.model_plan import Example, ModelPlan
from edgemm.export.task_check import ask
from edgemm.model import Model
from edgemm.runtimes.base import Array, SessionOptions, StatePort, Value, as_numpy
from edgemm.runtimes.onnxruntime import OrtDecoder, OrtSession

MOST = 16
_REAL = 3
_ROWS = 128  # how many are held before they are multiplied


def examples_for(plan: ModelPlan, examples: Sequence[Example]) -> list[Example]:
    """Those that the first task takes, evenly over the data, at most `MOST`."""
    usable = [e for e in examples if getattr(e, plan.takes) is not None]
    return usable[:: max(1, -(-len(usable) // MOST))]


class DecoderInputs:
    """What the decoder of `model` is given while the fp32 `bundle` does `task` on `examples`.

    `real` holds whole feeds, for checks: each example's last step.
    """

    def __init__(self, bundle: Path, model: str, task: str, examples: Sequence[Example]) -> None:
        self.bundle, self.model, self.task, self.examples = bundle, model, task, tuple(examples)
        self.real: list[dict[str, Array]] = []

    def moments(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """XᵀX [K, K] of each activation X [rows, K] in `names`."""
        watch = _Watch(names)
        self.real = []
        with _Watched(self.bundle, self.model, watch) as watched:
            for example in self.examples:
                watch.last = {}
                ask(watched, self.task, example)
                if len(self.real) < _REAL and watch.last:
                    self.real.append({k: np.array(as_numpy(v)) for k, v in watch.last.items()})
        return watch.moments()


class _Watch:
    """Sums of outer products of the rows that pass, and what the last run was fed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.last: dict[str, Value] = {}
        self._sums: dict[str, NDArray[np.float32]] = {}
        self._held: dict[str, list[NDArray[np.float32]]] = {n: [] for n in self.names}

    def see(self, values: Mapping[str, Value]) -> None:
        """Take the rows of every activation of one run."""
        for name in self.names:
            value = as_numpy(values[name])
            held = self._held[name]
            held.append(value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False))
            if sum(map(len, held)) >= _ROWS:
                self._add(name)

    def _add(self, name: str) -> None:
        rows = np.concatenate(self._held[name])
        self._held[name] = []
        product = rows.T @ rows
        self._sums[name] = self._sums[name] + product if name in self._sums else product

    def moments(self) -> dict[str, NDArray[np.float32]]:
        """The sums so far."""
        for name, held in self._held.items():
            if held:
                self._add(name)
        return self._sums


class _Watched(Model):
    """The tasks of a bundle on ONNX Runtime, one model's decoder watched."""

    def __init__(self, bundle: Path, model: str, watch: _Watch) -> None:
        super().__init__(open_bundle(bundle), runtime="onnxruntime")
        self._watch = watch
        self._graphs[model].load_decoder = self._load

    def _load(self, path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions) -> OrtDecoder:
        graph = onnx.load(path, load_external_data=False)
        inputs = {v.name for v in graph.graph.input}
        outputs = {v.name for v in graph.graph.output}
        for name in self._watch.names:
            if name not in inputs | outputs:
                graph.graph.output.add().name = name
        probe = path.with_suffix(".probe.onnx")  # beside its weights
        probe.write_bytes(graph.SerializeToString())
        try:
            return OrtDecoder(_Session(probe, options, self._watch), states, capacity)
        finally:
            probe.unlink()


class _Session(OrtSession):
    def __init__(self, path: Path, options: SessionOptions, watch: _Watch) -> None:
        super().__init__(path, options)
        self._watch = watch

    def run(self, feeds: Mapping[str, Value], *, keep: Collection[str] = ()) -> dict[str, Value]:
        values = super().run(feeds, keep=keep)
        self._watch.last = dict(feeds)
        self._watch.see({**feeds, **values})
        return values
