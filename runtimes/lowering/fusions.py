"""Small subgraphs that ONNX Runtime has one operator for."""

from __future__ import annotations

import numpy as np

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, attributes
from edgemm.runtimes.lowering.linear import linear, packable, write


def rms_norms(graph: Graph) -> None:
    """x / √(mean(x²) + ε) · weight → SimplifiedLayerNormalization."""
    for root in [n for n in graph.nodes if n.op_type == "Sqrt"]:
        found = _squares_mean(graph, root)
        normed = _scaled_by(graph, root, found[0]) if found else None
        last = graph.only_user(normed.output[0], "Mul") if normed is not None else None
        if found is None or normed is None or last is None:
            continue
        weight = next((i for i in last.input if i in graph.weights), "")
        if weight and len(graph.weights[weight].shape) == 1:
            graph.remove(last)
            graph.add(
                "SimplifiedLayerNormalization",
                [found[0], weight],
                last.output,
                axis=-1,
                epsilon=found[1],
                stash_type=1,
            )
    graph.prune()


def _squares_mean(graph: Graph, root: Node) -> tuple[str, float] | None:
    """The x and ε of √(mean(x²) + ε), the mean over the last axis."""
    add = graph.maker(root.input[0], "Add")
    mean = graph.maker(add.input[0], "ReduceMean") if add is not None else None
    power = graph.maker(mean.input[0], "Pow") if mean is not None else None
    if add is None or mean is None or power is None:
        return None
    epsilon, exponent = graph.scalar(add.input[1]), graph.scalar(power.input[1])
    axes = graph.constant(mean.input[1]) if len(mean.input) > 1 else None
    last = axes is not None and axes.tolist() == [-1] and attributes(mean).get("keepdims", 1) == 1
    return (power.input[0], epsilon) if last and exponent == 2 and epsilon is not None else None


def _scaled_by(graph: Graph, root: Node, x: str) -> Node | None:
    """The node that divides `x` by the root, or multiplies it by its reciprocal."""
    node = graph.only_user(root.output[0], "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Div":
        return node if node.input[0] == x else None
    product = graph.only_user(node.output[0], "Mul")
    return product if product is not None and x in product.input else None


def silu(graph: Graph) -> None:
    """x · sigmoid(x) → QuickGelu with alpha 1."""
    for node in [n for n in graph.nodes if n.op_type == "Mul"]:
        for x, gate in (node.input, reversed(node.input)):
            sigmoid = graph.maker(gate, "Sigmoid")
            if sigmoid is not None and sigmoid.input[0] == x:
                graph.remove(node)
                graph.add("QuickGelu", [x], node.output, MICROSOFT, alpha=1.0)
                break
    graph.prune()


def gated_products(graph: Graph) -> None:
    """f(x · gate) · (x · up) → one product and a split."""
    for node in [n for n in graph.nodes if n.op_type == "Mul"]:
        sides = [_gate_of(graph, name) for name in node.input]
        if sides[0] == sides[1] or "" in sides:
            continue
        parts = [linear(graph, side) for side in sides]
        if None in parts or not packable([p for p in parts if p]):
            continue
        halves = [p for p in parts if p]
        if halves[0].width == halves[1].width and all(graph.only_user(p.output, "Mul", *_GATES) for p in halves):
            packed = f"{halves[0].output}+{halves[1].output}"
            graph.remove(*(graph.maker(p.output) for p in halves))
            write(graph, halves, packed)
            graph.add("Split", [packed], [p.output for p in halves], axis=-1, num_outputs=2)
    graph.prune()


_GATES = ("QuickGelu", "Gelu", "Relu")


def _gate_of(graph: Graph, name: str) -> str:
    """What the activation that makes `name` reads, or `name` itself where a product makes it."""
    activation = graph.maker(name, *_GATES)
    if activation is not None:
        return str(activation.input[0]) if graph.only_user(name, "Mul") else ""
    return name if linear(graph, name) is not None else ""


def is_vector(graph: Graph, name: str, values: list[int]) -> bool:
    """Whether `name` is the constant vector `values`."""
    found = graph.constant(name)
    return found is not None and np.array_equal(found.reshape(-1), values)
