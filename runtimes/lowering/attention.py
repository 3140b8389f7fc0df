"""Self-attention as `export/tracing.py` writes it → GroupQueryAttention over one buffer of keys and one of values.

The operator appends to the buffers in place. Causality and the rotary tables are found by running the small graphs
that compute them, so that any spelling of them is recognised, and none that differs is taken for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemm.runtimes.base import StatePort
from edgemm.runtimes.lowering.fusions import is_vector
from edgemm.runtimes.lowering.graph import MICROSOFT, Graph, Node, Unrecognised, Weight, attributes
from edgemm.runtimes.lowering.linear import Linear, linear, packable, write
from edgemm.runtimes.lowering.probe import require_causal, rotary_tables

SEQLENS, TOTAL = "seqlens_k", "total_sequence_length"
_HEAD_MULTIPLE = 8
_COS, _SIN = "rotary.cos", "rotary.sin"


@dataclass(frozen=True)
class Rotary:
    """`x` [B, H, S, D] turned by the angles whose cosine and sine are the values `cos` and `sin`."""

    x: str
    cos: str
    sin: str


@dataclass(frozen=True)
class Attention:
    """One layer's attention: values of the graph and constants. query, key and value are [B, H, S, D], key before it is
    appended to the state."""

    key_state: StatePort
    value_state: StatePort
    query: str
    key: str
    value: str
    bias: str
    scale: float
    heads: int
    output: Node


def group_query_attention(graph: Graph, states: Sequence[StatePort], capacity: int) -> None:
    """Rewrite every layer. Raises Unrecognised, before anything is changed, where one is of another form."""
    if len(states) % 2:
        raise Unrecognised("states that are no pairs of keys and values")
    if any(s.shape[3] % _HEAD_MULTIPLE for s in states):
        raise Unrecognised(f"heads of {states[0].shape[3]}, no multiple of {_HEAD_MULTIPLE}")
    layers = [match(graph, k, v) for k, v in zip(states[::2], states[1::2], strict=True)]
    for bias in {a.bias for a in layers}:
        require_causal(graph, bias, capacity)
    turned = [(_rotary(graph, a.query), _rotary(graph, a.key)) for a in layers]
    fused = _tables(graph, [r for pair in turned for r in pair], capacity)
    for attention, (query, key) in zip(layers, turned, strict=True):
        if fused and query and key:
            _rewrite(graph, attention, query.x, key.x, rotary=True)
        else:
            _rewrite(graph, attention, attention.query, attention.key, rotary=False)
    _state_inputs(graph, states)
    graph.index()


def _tables(graph: Graph, found: Sequence[Rotary | None], capacity: int) -> bool:
    """Store the tables of cosines and sines where every layer turns by the same ones."""
    used = {(r.cos, r.sin) if r else None for r in found}
    pair = used.pop()
    if used or pair is None:
        return False
    try:
        tables = rotary_tables(graph, *pair, capacity)
    except Unrecognised:
        return False
    for name, table in zip((_COS, _SIN), tables, strict=True):
        graph.weights[name] = Weight.of(table.astype(np.float32))
    return True


def match(graph: Graph, key_state: StatePort, value_state: StatePort) -> Attention:
    """The attention over two states. Raises Unrecognised where it is of another form."""
    name = key_state.output
    keys, values = (_appended(graph, s) for s in (key_state, value_state))
    all_keys, groups = _repeated(graph, key_state)
    all_values, value_groups = _repeated(graph, value_state)
    turn = graph.only_user(all_keys, "Transpose")
    scores = graph.only_user(turn.output[0], "MatMul") if turn is not None else None
    if turn is None or scores is None or attributes(turn)["perm"] != [0, 1, 3, 2] or groups != value_groups:
        raise Unrecognised(f"the scores over {name}")
    query, scale = _scaled(graph, scores.input[0])
    masked = graph.only_user(scores.output[0], "Add")
    weights = graph.only_user(masked.output[0], "Softmax") if masked is not None else None
    if masked is None or weights is None or attributes(weights).get("axis", -1) != -1:
        raise Unrecognised(f"the mask or the softmax over {name}")
    bias = next(i for i in masked.input if i != scores.output[0])
    mixed = graph.only_user(weights.output[0], "MatMul")
    back = graph.only_user(mixed.output[0], "Transpose") if mixed is not None else None
    if mixed is None or mixed.input[1] != all_values or back is None or attributes(back)["perm"] != [0, 2, 1, 3]:
        raise Unrecognised(f"the sum over {value_state.output}")
    flat = graph.only_user(back.output[0], "Reshape")
    heads, dim = groups * key_state.shape[1], key_state.shape[3]
    if flat is None or _last_dim(graph, flat.input[1]) not in (-1, heads * dim):
        raise Unrecognised(f"the heads of {name}, which are not put side by side")
    return Attention(key_state, value_state, query, keys, values, bias, scale, heads, flat)


def _appended(graph: Graph, state: StatePort) -> str:
    """The value that is put behind a state."""
    node = graph.maker(state.output, "Concat")
    if node is None or list(node.input[:1]) != [state.input] or len(node.input) != 2:
        raise Unrecognised(f"{state.output}, which is not {state.input} with more behind it")
    if attributes(node)["axis"] not in (-2, 2) or state.growth_axis != 2 or -1 in (state.shape[1], state.shape[3]):
        raise Unrecognised(f"the axes of {state.output}")
    if graph.users(state.input) != [node] and any(
        n.op_type not in ("Concat", "Shape") for n in graph.users(state.input)
    ):
        raise Unrecognised(f"{state.input}, which has other readers")
    return str(node.input[1])


def _repeated(graph: Graph, state: StatePort) -> tuple[str, int]:
    """The state with each head as often as query heads read it, and how often that is."""
    readers = [n for n in graph.users(state.output) if n.op_type != "Shape"]
    if len(readers) != 1:
        raise Unrecognised(f"{state.output}, which has {len(readers)} readers")
    gather = readers[0]
    if gather.op_type != "Gather":
        # only_user does not answer for an output of the graph.
        return _identity(graph, state.output, gather), 1
    rows = graph.constant(gather.input[1])
    kv_heads = state.shape[1]
    if rows is None or attributes(gather).get("axis", 0) != 1 or rows.size % kv_heads:
        raise Unrecognised(f"the rows of {state.output}")
    groups = rows.size // kv_heads
    if rows.reshape(-1).tolist() != [h // groups for h in range(rows.size)]:
        raise Unrecognised(f"the order of the rows of {state.output}")
    return str(gather.output[0]), groups


def _identity(graph: Graph, name: str, reader: Node) -> str:
    """Another name for an output, which its one reader reads."""
    alias = f"{name}.state"
    if graph.maker(alias) is None:
        graph.add("Identity", [name], [alias])
        reader.input[list(reader.input).index(name)] = alias
        graph.index()
    return alias


def _scaled(graph: Graph, name: str) -> tuple[str, float]:
    node = graph.maker(name, "Mul")
    factor = graph.scalar(node.input[1]) if node is not None else None
    return (str(node.input[0]), factor) if node is not None and factor is not None else (name, 1.0)


def _last_dim(graph: Graph, shape: str) -> int | None:
    """The last entry of a shape, constant or put together from computed sizes."""
    node = graph.maker(shape, "Concat")
    value = graph.constant(node.input[-1] if node is not None else shape)
    return int(value.reshape(-1)[-1]) if value is not None else None


def _rotary(graph: Graph, name: str) -> Rotary | None:
    """x · cos + (−x₂, x₁) · sin, with x₁ and x₂ the halves of x (Su et al., arXiv 2104.09864, as in GPT-NeoX)."""
    add = graph.maker(name, "Add")
    products = [graph.maker(i, "Mul") for i in add.input] if add is not None else []
    for straight, turned in (products, products[::-1]) if None not in products and products else ():
        assert straight is not None
        assert turned is not None
        x, cos = straight.input
        if x in graph.weights or not _is_turned(graph, turned.input[0], x):
            continue
        return Rotary(x, cos, turned.input[1])
    return None


def _is_turned(graph: Graph, name: str, x: str) -> bool:
    """Whether `name` is the second half of `x`, negated, and then the first."""
    both = graph.maker(name, "Concat")
    negated = graph.maker(both.input[0], "Neg") if both is not None else None
    if both is None or negated is None or len(both.input) != 2 or attributes(both)["axis"] not in (-1, 3):
        return False
    second, first = graph.maker(negated.input[0], "Slice"), graph.maker(both.input[1], "Slice")
    if second is None or first is None or second.input[0] != x or first.input[0] != x:
        return False
    edges = [graph.scalar(i) for i in (*first.input[1:3], second.input[1])]
    same_axis = all(is_vector(graph, n.input[3], [3]) or is_vector(graph, n.input[3], [-1]) for n in (first, second))
    return same_axis and edges[0] == 0 and edges[1] == edges[2]


def _rewrite(graph: Graph, attention: Attention, query: str, key: str, *, rotary: bool) -> None:
    names = (attention.key_state, attention.value_state)
    output = str(attention.output.output[0])
    graph.remove(attention.output, *(graph.maker(s.output) for s in names))
    graph.index()
    dim = attention.key_state.shape[3]
    heads = (attention.heads, attention.key_state.shape[1])
    parts = [_product(graph, v, dim) for v in (query, key, attention.value)]
    linears = [p for p in parts if isinstance(p, Linear)]
    widths = [dim * heads[0], dim * heads[1], dim * heads[1]]
    if len(linears) == 3 and packable(linears) and [p.width for p in linears] == widths:
        packed = f"{output}.qkv"
        write(graph, linears, packed)
        inputs = [packed, "", ""]
    else:
        inputs = [_flat(graph, v, p) for v, p in zip((query, key, attention.value), parts, strict=True)]
    graph.add(
        "GroupQueryAttention",
        [*inputs, *(s.input for s in names), SEQLENS, TOTAL, *((_COS, _SIN) if rotary else ())],
        [output, *(s.output for s in names)],
        MICROSOFT,
        num_heads=heads[0],
        kv_num_heads=heads[1],
        scale=attention.scale,
        do_rotary=int(rotary),
        rotary_interleaved=0,
    )


def _product(graph: Graph, name: str, dim: int) -> Linear | None:
    """The product whose heads `name` [B, H, S, D] holds, where nothing lies between."""
    turn = graph.maker(name, "Transpose")
    split = graph.maker(turn.input[0], "Reshape") if turn is not None else None
    if turn is None or split is None or attributes(turn)["perm"] != [0, 2, 1, 3]:
        return None
    return linear(graph, split.input[0]) if _last_dim(graph, split.input[1]) == dim else None


def _flat(graph: Graph, name: str, product: Linear | None) -> str:
    """[B, H, S, D] → [B, S, H · D]."""
    if product is not None:
        return product.output
    graph.weights["heads.flat"] = Weight.of(np.array([0, 0, -1]))
    turn = graph.maker(name, "Transpose")
    if turn is not None and attributes(turn)["perm"] == [0, 2, 1, 3]:
        last_first = str(turn.input[0])
    else:
        last_first = graph.add("Transpose", [name], [f"{name}.turned"], perm=[0, 2, 1, 3])
    return graph.add("Reshape", [last_first, "heads.flat"], [f"{name}.flat"])


def _state_inputs(graph: Graph, states: Sequence[StatePort]) -> None:
    """Buffers in place of growing states, and their lengths as inputs."""
    from onnx import TensorProto, helper

    for state in states:
        dims = ["batch", state.shape[1], "buffer", state.shape[3]]
        for ports, name in ((graph.inputs, state.input), (graph.outputs, state.output)):
            ports[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
    for name in (SEQLENS, TOTAL):
        graph.inputs[name] = helper.make_tensor_value_info(name, TensorProto.INT32, [1])
