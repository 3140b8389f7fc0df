"""Norms that export has doubled: smoothed for the matrices, and as they were for the sums."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from edgemm.runtimes.lowering.graph import Graph, Node, Weight, attributes

_CLOSE = 1e-5


def norms_with_twins(graph: Graph) -> None:
    """Of LayerNormalizations of one value that differ by a factor a column, all but the first → Mul."""
    groups: dict[tuple[str, float, int], list[Node]] = defaultdict(list)
    for node in [n for n in graph.nodes if n.op_type == "LayerNormalization" and len(n.output) == 1]:
        about = attributes(node)
        groups[node.input[0], about.get("epsilon", 1e-5), about.get("axis", -1)].append(node)
    for first, *others in groups.values():
        for other in others:
            factors = _factors(graph, first, other)
            if factors is not None:
                name = f"{other.output[0]}.factors"
                graph.weights[name] = Weight.of(factors)
                graph.remove(other)
                graph.add("Mul", [first.output[0], name], other.output)
    graph.prune()


def _factors(graph: Graph, first: Node, other: Node) -> np.ndarray | None:
    """What the columns of `first` are multiplied by to be those of `other`."""
    pairs = [[graph.weights.get(i) for i in node.input[1:]] for node in (first, other)]
    if len({len(p) for p in pairs}) != 1 or any(w is None or len(w.shape) != 1 for p in pairs for w in p):
        return None
    (scale, *shift), (scale2, *shift2) = ([np.asarray(w.load()) for w in p if w is not None] for p in pairs)
    if scale.dtype != np.float32 or not scale.all():
        return None
    factors = scale2 / scale
    same = all(_alike(a * factors, b) for a, b in zip(shift, shift2, strict=True))
    return factors if same else None


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE * float(np.abs(expected).max()))
