"""What activations look like on real examples: the largest value of each channel, and where to clip a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
Method = Literal["mse", "max", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("mse", "max", "percentile", "entropy")
_BINS = 2048
_LEVELS = 127
_PERCENTILE = 0.9999
_LEAST = 1e-9


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


@dataclass
class Known:
    """What was seen of one graph's activations: it need not be run again for the next way to quantize it."""

    maxima: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    limits: dict[tuple[bool, Method], dict[str, float]] = field(default_factory=dict)
    """By whether the graph was smoothed, and the method."""


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


def clip_limits(
    model: onnx.ModelProto, names: Sequence[str], examples: Sequence[Feeds], method: Method = "mse"
) -> dict[str, float]:
    """The clipping limit of each tensor.

    `mse` loses least to rounding and clipping together (mean squared error), `max` clips nothing, `percentile` clips
    one value in 10,000, `entropy` keeps the distribution most alike (Kullback–Leibler, Migacz, GTC 2017).
    """
    if not names:
        return {}
    peaks: dict[str, float] = dict.fromkeys(names, 0.0)
    for values in observed(model, names, examples):
        for name, value in values.items():
            peaks[name] = max(peaks[name], float(np.abs(value).max()))
    if method == "max":
        return {name: peak or 1.0 for name, peak in peaks.items()}
    counts = {name: np.zeros(_BINS) for name in names}
    for values in observed(model, names, examples):
        for name, value in values.items():
            bins = np.minimum(np.abs(value) * np.float32(_BINS / (peaks[name] or 1.0)), _BINS - 1)
            counts[name] += np.bincount(bins.astype(np.int32).ravel(), minlength=_BINS)
    choose = {"mse": _least_error, "percentile": _percentile, "entropy": _least_divergence}[method]
    return {name: choose(counts[name], peaks[name] or 1.0) for name in names}


def _least_error(counts: NDArray[np.float64], peak: float) -> float:
    centres = (np.arange(_BINS) + 0.5) * peak / _BINS
    limits = peak * np.linspace(0.2, 1.0, 81)
    errors = [
        float((counts * np.where(centres <= t, (t / _LEVELS) ** 2 / 12, (centres - t) ** 2)).sum()) for t in limits
    ]
    return float(limits[int(np.argmin(errors))])


def _percentile(counts: NDArray[np.float64], peak: float) -> float:
    share = np.cumsum(counts) / counts.sum()
    return float(peak * (np.searchsorted(share, _PERCENTILE) + 1) / _BINS)


def _least_divergence(counts: NDArray[np.float64], peak: float) -> float:
    """What is clipped counts at the edge of the clipped distribution, and is missing in the quantized one."""
    counts = counts.copy()
    counts[0] = 0.0  # zeros are stored exactly, and would hide the rest
    ends = range(_LEVELS, _BINS + 1, 16)
    losses = [_divergence(counts, end) for end in ends]
    return float(peak * ends[int(np.argmin(losses))] / _BINS)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    kept = counts[:end]
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    level = np.arange(end) * _LEVELS // end
    filled = np.bincount(level, kept > 0, _LEVELS)
    mean = np.bincount(level, kept, _LEVELS) / np.maximum(filled, 1)
    rounded = np.where(kept > 0, mean[level], 0.0)
    if not rounded.any():
        return float("inf")
    p, q = clipped / clipped.sum(), rounded / rounded.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], _LEAST))).sum())
