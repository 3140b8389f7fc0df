"""Which operators lose most by being quantized: each one's noise, measured inside one graph.

The probe computes the floating-point graph, and beside every quantized operator what it would make of the same inputs.
So one run gives the signal-to-noise ratio of every operator with only that operator quantized, on the kernels that
will run it. Nothing of the graph's structure is assumed: an operator is quantized where the two graphs make the same
tensor in different ways.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgemm.export.precision.ranges import Feeds
from edgemm.export.precision.recipe import key

_NOISY, _SIGNAL, _NOISE = ".edgemm_noisy", ".edgemm_signal", ".edgemm_noise"
_LOUDEST_DB = 120.0


@dataclass(frozen=True)
class Noise:
    """What quantization does to the output of one operator: signal over noise, in decibels, 120 where there is none."""

    component: str
    node: str
    operator: str
    sqnr_db: float


def noises(
    component: str, whole: onnx.ModelProto, quantized: onnx.ModelProto, examples: Sequence[Feeds]
) -> list[Noise]:
    """The noise of every quantized operator, the loudest first.

    `whole` is the floating-point graph that `quantized` was made from, after smoothing: all other tensors are equal.
    """
    probe, changed = _probe(whole, quantized)
    if not changed or not examples:
        return []
    names = [n.output[0] + end for n in changed for end in (_SIGNAL, _NOISE)]
    sums = np.zeros(len(names))
    for values in _runs(probe, names, examples):
        sums += np.nan_to_num(np.asarray(values, np.float64), posinf=1e30)
    found = [
        Noise(component, key(node), node.op_type, _decibels(signal, noise))
        for node, signal, noise in zip(changed, sums[::2], sums[1::2], strict=True)
    ]
    return sorted(found, key=lambda n: n.sqnr_db)


def loudest_first(found: Iterable[Noise]) -> list[Noise]:
    """The operators of all components in one order."""
    return sorted(found, key=lambda n: (n.sqnr_db, n.component, n.node))


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
        if original is None:
            nodes.append(node)
            continue
        noisy = onnx.NodeProto()
        noisy.CopyFrom(node)
        noisy.name, noisy.output[0] = node.name + _NOISY, node.output[0] + _NOISY
        nodes += [noisy, original, *_measured(node.output[0])]
    probe = onnx.ModelProto()
    probe.CopyFrom(quantized)
    del probe.graph.node[:]
    probe.graph.node.extend(nodes)
    present = {t.name for t in quantized.graph.initializer}
    read = {i for n in changed for i in n.input}
    probe.graph.initializer.extend(t for t in whole.graph.initializer if t.name in read - present)
    for node in changed:
        for end in (_SIGNAL, _NOISE):
            probe.graph.output.add().name = node.output[0] + end
    return probe, changed


def _differs(original: onnx.NodeProto, made: onnx.NodeProto | None) -> bool:
    return made is not None and (made.op_type != original.op_type or list(made.input) != list(original.input))


def _measured(tensor: str) -> list[onnx.NodeProto]:
    difference = f"{tensor}.edgemm_difference"
    return [
        helper.make_node("Sub", [tensor, tensor + _NOISY], [difference]),
        helper.make_node("ReduceSumSquare", [tensor], [tensor + _SIGNAL], keepdims=0),
        helper.make_node("ReduceSumSquare", [difference], [tensor + _NOISE], keepdims=0),
    ]


def _runs(probe: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds]) -> Iterable[list[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="edgemm-probe-") as directory:
        path = Path(directory) / "probe.onnx"
        # Beside the graph, since a protobuf ends at 2 GB.
        onnx.save(probe, path, save_as_external_data=True, location="probe.data", size_threshold=1024)
        session = onnxruntime.InferenceSession(str(path), options)
        for feeds in examples:
            yield session.run(list(names), dict(feeds))
