"""What activations look like on real examples: the largest value of each channel, and where to clip a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
_BINS = 2048
_LEVELS = 127


def observed(
    model: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The values of the tensors `names` for each example, one example at a time."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inputs = {i.name for i in model.graph.input}
    for name in names:
        if name not in inputs:
            probe.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options)
    wanted = [n for n in names if n not in inputs]
    for feeds in examples:
        values = session.run(wanted, dict(feeds)) if wanted else []
        yield {n: feeds[n] for n in names if n in inputs} | dict(zip(wanted, values, strict=True))


def channel_maxima(
    model: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds]
) -> dict[str, NDArray[np.float32]]:
    """Largest magnitude of every channel (last axis) of the tensors `names`."""
    found: dict[str, NDArray[np.float32]] = {}
    for values in observed(model, names, examples):
        for name, value in values.items():
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            found[name] = np.maximum(found[name], peak) if name in found else peak
    return found


def clip_limits(model: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds]) -> dict[str, float]:
    """The clipping limit of each tensor that loses least to rounding and clipping together (mean squared error)."""
    peaks: dict[str, float] = dict.fromkeys(names, 0.0)
    for values in observed(model, names, examples):
        for name, value in values.items():
            peaks[name] = max(peaks[name], float(np.abs(value).max()))
    counts = {name: np.zeros(_BINS) for name in names}
    for values in observed(model, names, examples):
        for name, value in values.items():
            edge = peaks[name] or 1.0
            counts[name] += np.histogram(np.abs(value), bins=_BINS, range=(0.0, edge))[0]
    return {name: _best_limit(counts[name], peaks[name] or 1.0) for name in names}


def _best_limit(counts: NDArray[np.float64], peak: float) -> float:
    centres = (np.arange(_BINS) + 0.5) * peak / _BINS
    limits = peak * np.linspace(0.2, 1.0, 81)
    errors = [
        float((counts * np.where(centres <= t, (t / _LEVELS) ** 2 / 12, (centres - t) ** 2)).sum()) for t in limits
    ]
    return float(limits[int(np.argmin(errors))])
