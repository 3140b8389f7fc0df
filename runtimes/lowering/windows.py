"""Convolutions over time as integer products of the windows that they read.

One step serves a whole recording, as the windows share their values: 15 bits of activations (`integers.py`) leave
enough for the quiet ones. Weights are rounded to int8, one step a channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemm.runtimes.lowering.graph import Graph, Node, Weight, attributes
from edgemm.runtimes.lowering.integers import Integers, columns, peak_of

_ALL, _TIME = "windows.all", "windows.time"
_FAR = np.iinfo(np.int64).max
_LEAST_WIDTH = 512


def windowed_products(graph: Graph, integers: Integers) -> None:
    """Rewrite the convolutions without padding over [B, C, T], and what follows them until it is turned."""
    graph.weights |= {_ALL: Weight.of(np.array([1, 2])), _TIME: Weight.of(np.array([1]))}
    for node in [n for n in graph.nodes if n.op_type == "Conv"]:
        weight = _weight(graph, node)
        if weight is not None:
            _write(graph, integers, node, *weight)
            graph.index()
    graph.prune()


def _weight(graph: Graph, node: Node) -> tuple[tuple[int, ...], Callable[[], NDArray[np.float32]]] | None:
    """The shape [N, C, taps] of a convolution's weight, and how it is read."""
    cast = graph.maker(node.input[1], "Cast")
    stored = graph.weights.get(cast.input[0] if cast is not None else node.input[1])
    about = attributes(node)
    if stored is None or len(stored.shape) != 3 or stored.dtype not in (np.float16, np.float32):
        return None
    plain = about.get("group", 1) == 1 and not any(about.get("pads", [])) and set(about.get("dilations", [1])) == {1}
    wide = stored.shape[1] * stored.shape[2] >= _LEAST_WIDTH
    unpadded = about.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return (stored.shape, lambda: np.asarray(stored.load(), np.float32)) if plain and wide and unpadded else None


def _write(
    graph: Graph, integers: Integers, node: Node, shape: tuple[int, ...], load: Callable[[], NDArray[np.float32]]
) -> None:
    width, channels, taps = shape
    name, step = str(node.output[0]), int(attributes(node).get("strides", [1])[0])
    x = _turned(graph, node.input[0])

    def matrix() -> NDArray[np.float32]:
        return load().transpose(2, 1, 0).reshape(taps * channels, width)

    graph.weights[f"{name}.columns"] = Weight(np.dtype(np.int8), (taps * channels, width), lambda: columns(matrix())[0])
    graph.weights[f"{name}.steps"] = Weight(np.dtype(np.float32), (width,), lambda: columns(matrix())[1])
    parts = []
    for fine in (False, True):
        stored = integers.remainders(x) if fine else integers.within(x, _ALL, peak_of(x))
        windows = _windows(graph, stored, taps, step)
        output = f"{name}.rest" if fine else f"{name}.unscaled"
        parts.append(integers.product(windows, f"{name}.columns", f"{name}.steps", output, fine=fine))
    scaled = graph.add("Mul", [graph.add("Add", parts, [f"{name}.both"]), peak_of(x)], [f"{name}.scaled"])
    if len(node.input) > 2:
        scaled = graph.add("Add", [scaled, node.input[2]], [f"{name}.biased"])
    graph.remove(node)
    following = graph.only_user(name, "Gelu")
    if following is not None:
        graph.remove(following)
        scaled = graph.add("Gelu", [scaled], [f"{name}.gelu"], **attributes(following))
        name = str(following.output[0])
    graph.add("Transpose", [scaled], [name], perm=[0, 2, 1])


def _turned(graph: Graph, name: str) -> str:
    """[B, C, T] → [B, T, C]."""
    before = graph.maker(name, "Transpose")
    if before is not None and list(attributes(before).get("perm", [])) == [0, 2, 1]:
        return str(before.input[0])
    return graph.add("Transpose", [name], [f"{name}.in_time"], perm=[0, 2, 1])


def _windows(graph: Graph, x: str, taps: int, step: int) -> str:
    """[B, T, C] → [B, (T - taps) / step + 1, taps · C]."""
    graph.weights[f"windows.step.{step}"] = Weight.of(np.array([step]))
    cut = []
    for tap in range(taps):
        start, end = f"windows.{tap}", f"windows.{tap}.of.{taps}"
        graph.weights[start] = Weight.of(np.array([tap]))
        graph.weights[end] = Weight.of(np.array([tap + 1 - taps or _FAR]))
        cut.append(graph.add("Slice", [x, start, end, _TIME, f"windows.step.{step}"], [f"{x}.{taps}.{step}.{tap}"]))
    return graph.add("Concat", cut, [f"{x}.{taps}.{step}"], axis=-1)
