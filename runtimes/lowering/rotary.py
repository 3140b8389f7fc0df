"""Rotary embeddings of an encoder as `export/tracing.py` writes them → RotaryEmbedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, Weight, attributes

_START, _TABLE = "rotary.start", "rotary.table"
_FAR = 1 << 30


@dataclass(frozen=True)
class _Rotary:
    """The first `size` of x's last axis, in neighbouring pairs, turned by angles whose cosines and sines, one a pair,
    are the values `cos` and `sin`."""

    split: Node
    size: int
    cos: str
    sin: str


def rotary_embeddings(graph: Graph) -> None:
    """Rewrite those of heads [B, S, H, D] whose positions count from 0."""
    graph.weights[_START] = Weight.of(np.array([0]))
    for last in [n for n in graph.nodes if n.op_type == "Concat"]:
        found = _match(graph, last)
        heads = _heads(graph, found.split) if found else 0
        if found is None or heads <= 0:
            continue
        graph.remove(last)
        inputs = [found.split.input[0], _START, _table(graph, found.cos, found), _table(graph, found.sin, found)]
        turned, name = f"{last.output[0]}.rows", last.output[0]
        how = {"interleaved": 1, "num_heads": heads, "rotary_embedding_dim": found.size}
        graph.add("RotaryEmbedding", inputs, [turned], MICROSOFT, **how)
        graph.add("Reshape", [turned, found.split.input[1]], [f"{name}.split"], **_kept(found.split))
        graph.add("Transpose", [f"{name}.split"], [name], perm=[0, 2, 1, 3])
        graph.index()
    graph.prune()


def _heads(graph: Graph, split: Node) -> int:
    """H of the shape [B, S, H, D]; 0 where it is not constant."""
    whole, parts = graph.constant(split.input[1]), graph.maker(split.input[1], "Concat")
    if whole is not None:
        return int(whole[2]) if whole.shape == (4,) else 0
    return int(graph.scalar(parts.input[2]) or 0) if parts is not None and len(parts.input) == 4 else 0


def _kept(split: Node) -> dict[str, Any]:
    return {"allowzero": attributes(split).get("allowzero", 0)}


def _match(graph: Graph, last: Node) -> _Rotary | None:
    if len(last.input) != 2 or attributes(last).get("axis") not in (-1, 3):
        return None
    total, rest = graph.maker(last.input[0], "Add"), _cut(graph, last.input[1])
    if total is None or rest is None or rest[2:] != (_FAR, 1):
        return None
    x, size = rest[0], rest[1]
    straight, crossed = (graph.maker(i, "Mul") for i in total.input)
    if straight is None or crossed is None or _cut(graph, straight.input[0]) != (x, 0, size, 1):
        return None
    if not _is_crossed(graph, crossed.input[0], straight.input[0]):
        return None
    cos, sin = _repeated(graph, straight.input[1], "Cos", size), _repeated(graph, crossed.input[1], "Sin", size)
    turn = graph.maker(x, "Transpose")
    split = graph.maker(turn.input[0], "Reshape") if turn is not None else None
    if not cos or not sin or turn is None or split is None or list(attributes(turn)["perm"]) != [0, 2, 1, 3]:
        return None
    return _Rotary(split, size, cos, sin)


def _cut(graph: Graph, name: str) -> tuple[str, int, int, int] | None:
    """What `name` is cut out of along its last of four axes, and from where, to where, in which steps."""
    node = graph.maker(name, "Slice")
    if node is None or len(node.input) != 5:
        return None
    values = [graph.scalar(i) for i in node.input[1:]]
    if any(v is None for v in values) or values[2] not in (-1, 3):
        return None
    start, end, _, step = (int(v) for v in values if v is not None)
    return str(node.input[0]), start, min(end, _FAR), step


def _is_crossed(graph: Graph, name: str, x: str) -> bool:
    """Whether `name` is x with each pair (a, b) as (-b, a)."""
    flat = graph.maker(name, "Reshape")
    pairs = graph.maker(flat.input[0], "Concat") if flat is not None else None
    if flat is None or pairs is None or len(pairs.input) != 2 or attributes(pairs).get("axis") != -1:
        return False
    parts = [graph.maker(i, "Unsqueeze") for i in pairs.input]
    if any(p is None or graph.scalar(p.input[1]) != -1 for p in parts) or not _merges_last(graph, flat, pairs):
        return False
    odd, even = (str(p.input[0]) for p in parts if p is not None)
    minus = graph.maker(odd, "Neg")
    return minus is not None and _cut(graph, minus.input[0]) == (x, 1, _FAR, 2) and _cut(graph, even) == (x, 0, _FAR, 2)


def _merges_last(graph: Graph, flat: Node, pairs: Node) -> bool:
    """Whether `flat` makes one axis of the last two: its shape is that of `pairs` without them, and -1."""
    shape = graph.maker(flat.input[1], "Concat")
    kept = graph.maker(shape.input[0], "Slice") if shape is not None and len(shape.input) == 2 else None
    whole = graph.maker(kept.input[0], "Shape") if kept is not None else None
    if shape is None or kept is None or whole is None:
        return False
    ends = [graph.scalar(i) for i in (*kept.input[1:3], shape.input[1])]
    return bool(whole.input[0] == pairs.output[0] and not attributes(whole).get("start", 0) and ends == [0, -2, -1])


def _repeated(graph: Graph, name: str, op: str, size: int) -> str:
    """The [1, 1, S, size / 2] of which `name` has every value twice; "" unless it is `op` of angles by position."""
    flat = graph.maker(name, "Reshape")
    wide = graph.maker(flat.input[0], "Expand") if flat is not None else None
    deep = graph.maker(wide.input[0], "Unsqueeze") if wide is not None else None
    if flat is None or wide is None or deep is None or graph.scalar(deep.input[1]) not in (-1, 4):
        return ""
    times, shape = graph.constant(wide.input[1]), graph.constant(flat.input[1])
    if times is None or times.tolist() != [1, 1, 1, 1, 2] or shape is None or shape.tolist() != [1, 1, -1, size]:
        return ""
    half = _cut(graph, deep.input[0])
    four = graph.maker(half[0], "Unsqueeze") if half is not None else None
    angles = graph.maker(four.input[0], op) if four is not None else None
    fits = half is not None and half[1:] == (0, size // 2, 1) and angles is not None and _from_zero(graph, angles)
    return str(deep.input[0]) if fits else ""


def _from_zero(graph: Graph, angles: Node) -> bool:
    """Whether the first half of what `angles` reads is 0, 1, 2, … times something: the same for the whole batch."""
    both = graph.maker(angles.input[0], "Concat")
    turned = graph.maker(both.input[0], "Mul") if both is not None else None
    place = graph.maker(turned.input[0], "Cast") if turned is not None else None
    spread = graph.maker(place.input[0], "Unsqueeze") if place is not None else None
    count = graph.maker(spread.input[0], "Range") if spread is not None else None
    if turned is None or spread is None or count is None:
        return False
    axes, speeds = graph.constant(spread.input[1]), graph.weights.get(turned.input[1])
    one = axes is not None and axes.tolist() == [0, 2] and speeds is not None and len(speeds.shape) == 1
    return one and graph.scalar(count.input[0]) == 0 and graph.scalar(count.input[2]) == 1


def _table(graph: Graph, name: str, found: _Rotary) -> str:
    """[1, 1, S, size / 2] → [S, size / 2]."""
    table, shape = f"{name}.table", f"{_TABLE}.{found.size}"
    graph.weights[shape] = Weight.of(np.array([-1, found.size // 2]))
    if graph.maker(table) is None:
        graph.add("Reshape", [name, shape], [table])
    return table
