"""Which operators lose most by being quantized: each one's noise, measured inside one graph.

The probe computes the floating-point graph, and beside every quantized operator what it would make of the same inputs,
on the kernels that will run it; a switch says of which operators the quantized result goes on. One run with all
switches off gives the noise of every operator's own output; one run for each operator, what that noise does to the
graph's outputs. Nothing of the graph's structure is assumed: an operator is quantized where the two graphs make the
same tensor in different ways.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgemm.bundle.manifest import Precision
from edgemm.export.precision.ranges import Feeds
from edgemm.export.precision.recipe import key

_SIGNAL, _NOISE, _CHOSEN = ".edgemm_signal", ".edgemm_noise", "edgemm_chosen"
_LOUDEST_DB = 120.0
ENOUGH_S, _FEW = 20.0, 4


@dataclass(frozen=True)
class Noise:
    """Signal over noise, in decibels, with only this operator quantized: 120 where there is no noise.

    `sqnr_db` of its own output, `output_db` of the graph's output that it disturbs most (None: there was no time).
    `stored` is the precision of its weights.
    """

    component: str
    node: str
    operator: str
    sqnr_db: float
    output_db: float | None = None
    stored: Precision = "int8"


def noises(
    component: str,
    whole: onnx.ModelProto,
    quantized: onnx.ModelProto,
    examples: Sequence[Feeds],
    *,
    enough_s: float = ENOUGH_S,
) -> list[Noise]:
    """The noise of every quantized operator, in the order of `loudest_first`.

    `whole` is the floating-point graph that `quantized` was made from, after smoothing: all other tensors are equal.
    What operators do to the outputs is measured from the loudest on, for `enough_s` seconds.
    """
    model, changed = _probe(whole, quantized)
    if not changed or not examples:
        return []
    in_int4 = _reads_int4(quantized)
    with _opened(model) as session:
        probe = _Probe(session, changed, [o.name for o in whole.graph.output if _is_float(o)])
        found = [
            Noise(component, key(node), node.op_type, ratio, stored="int4" if node.output[0] in in_int4 else "int8")
            for node, ratio in zip(changed, probe.own(examples), strict=True)
        ]
        order = sorted(range(len(found)), key=lambda i: found[i].sqnr_db)
        for number, ratio in probe.outputs(order, examples[:: max(1, len(examples) // _FEW)][:_FEW], enough_s):
            found[number] = replace(found[number], output_db=ratio)
    return loudest_first(found)


def loudest_first(found: Iterable[Noise]) -> list[Noise]:
    """The operators of all components in one order: by what they do to the outputs, then by their own noise."""

    def rank(noise: Noise) -> tuple[bool, float, str, str]:
        measured = noise.output_db is not None
        return (
            not measured,
            noise.output_db if noise.output_db is not None else noise.sqnr_db,
            noise.component,
            noise.node,
        )

    return sorted(found, key=rank)


@dataclass(frozen=True)
class _Probe:
    session: Any
    changed: Sequence[onnx.NodeProto]
    outputs_of_graph: Sequence[str]

    def own(self, examples: Sequence[Feeds]) -> list[float]:
        """Signal over noise of every changed operator's own output."""
        names = [n.output[0] + end for n in self.changed for end in (_SIGNAL, _NOISE)]
        sums = np.zeros(len(names))
        for feeds in examples:
            sums += np.nan_to_num(np.asarray(self._run(names, feeds), np.float64), posinf=1e30)
        return [_decibels(signal, noise) for signal, noise in zip(sums[::2], sums[1::2], strict=True)]

    def outputs(self, order: Sequence[int], examples: Sequence[Feeds], enough_s: float) -> Iterator[tuple[int, float]]:
        """Signal over noise of the output that each operator of `order` disturbs most, while there is time."""
        start = time.perf_counter()
        clean = [self._run(self.outputs_of_graph, feeds) for feeds in examples]
        for number in order:
            if time.perf_counter() - start > enough_s:
                return
            pairs = [
                (want, self._run(self.outputs_of_graph, f, number)) for want, f in zip(clean, examples, strict=True)
            ]
            yield number, min(_ratio([(a[i], b[i]) for a, b in pairs]) for i in range(len(self.outputs_of_graph)))

    def _run(self, names: Sequence[str], feeds: Feeds, chosen: int | None = None) -> list[Any]:
        switches = np.arange(len(self.changed)) == (-1 if chosen is None else chosen)
        values: list[Any] = self.session.run(list(names), {**feeds, _CHOSEN: switches})
        return values


def _ratio(pairs: Sequence[tuple[Any, Any]]) -> float:
    sums = [(np.square(a, dtype=np.float64).sum(), np.square(a - b, dtype=np.float64).sum()) for a, b in pairs]
    signal, noise = (float(np.nan_to_num(sum(side), posinf=1e30)) for side in zip(*sums, strict=True))
    return _decibels(signal, noise)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _decibels(signal: float, noise: float) -> float:
    if noise <= signal * 10 ** (-_LOUDEST_DB / 10):
        return _LOUDEST_DB
    return round(10 * float(np.log10(max(signal, 1e-30) / noise)), 2)


def _probe(whole: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    """`quantized`, but every quantized tensor goes on in floating point, and its noise is an output."""
    made = {o: n for n in quantized.graph.node for o in n.output}
    changed = [n for n in whole.graph.node if _differs(n, made.get(n.output[0]))]
    originals = {n.output[0]: n for n in changed}
    nodes: list[onnx.NodeProto] = []
    for node in quantized.graph.node:
        original = originals.get(node.output[0])
        nodes += [node] if original is None else _both(node, original)
    probe = onnx.ModelProto()
    probe.CopyFrom(quantized)
    del probe.graph.node[:]
    probe.graph.node.extend(nodes)
    probe.graph.input.append(helper.make_tensor_value_info(_CHOSEN, onnx.TensorProto.BOOL, [len(changed)]))
    index = [numpy_helper.from_array(np.int64(i), f"{n.output[0]}{_CHOSEN}") for i, n in enumerate(changed)]
    probe.graph.initializer.extend(index)
    present = {t.name for t in quantized.graph.initializer}
    read = {i for n in changed for i in n.input}
    probe.graph.initializer.extend(t for t in whole.graph.initializer if t.name in read - present)
    for node in changed:
        for end in (_SIGNAL, _NOISE):
            probe.graph.output.add().name = node.output[0] + end
    return probe, changed


def _reads_int4(quantized: onnx.ModelProto) -> set[str]:
    """What operators make whose weights are stored in int4."""
    stored = {t.name for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.INT4}
    weights = {n.output[0] for n in quantized.graph.node if stored.intersection(n.input)}
    return {n.output[0] for n in quantized.graph.node if weights.intersection(n.input)}


def _differs(original: onnx.NodeProto, made: onnx.NodeProto | None) -> bool:
    return made is not None and (made.op_type != original.op_type or list(made.input) != list(original.input))


def _both(quantized: onnx.NodeProto, original: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The operator in both forms, the noise between them, and the switch that takes one of them."""
    tensor = original.output[0]
    clean, noisy, chosen, difference = (
        f"{tensor}.edgemm_{part}" for part in ("clean", "noisy", "is_chosen", "difference")
    )
    forms = []
    for node, output in ((quantized, noisy), (original, clean)):
        form = onnx.NodeProto()
        form.CopyFrom(node)
        form.name, form.output[0] = output, output
        forms.append(form)
    return [
        *forms,
        helper.make_node("Sub", [clean, noisy], [difference]),
        helper.make_node("ReduceSumSquare", [clean], [tensor + _SIGNAL], keepdims=0),
        helper.make_node("ReduceSumSquare", [difference], [tensor + _NOISE], keepdims=0),
        helper.make_node("Gather", [_CHOSEN, f"{tensor}{_CHOSEN}"], [chosen]),
        helper.make_node("Where", [chosen, noisy, clean], [tensor]),
    ]


@contextmanager
def _opened(probe: onnx.ModelProto) -> Iterator[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="edgemm-probe-") as directory:
        path = Path(directory) / "probe.onnx"
        # Beside the graph, since a protobuf ends at 2 GB.
        onnx.save(probe, path, save_as_external_data=True, location="probe.data", size_threshold=1024)
        yield onnxruntime.InferenceSession(str(path), options)
