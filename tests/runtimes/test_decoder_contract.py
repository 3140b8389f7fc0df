"""The `Decoder` contract on every runtime: whatever was done to the state, it equals a full recompute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgemm.errors import ContextFull, InputError
from edgemm.runtimes.base import StatePort, state_port
from tests.export.exported import EXACT, exported, plan
from tests.runtimes.cancelling import cancelled
from tests.runtimes.pretend_gpu import CONTRACT, PRETENDED, module

TOLERANCE = 1e-4
CAPACITY = 24
NAMES = ("smolvlm", "moonshine")


class Original:
    """The decoder's torch module, without any cache: everything is computed anew."""

    def __init__(self, name):
        self.graph = next(g for g in plan(name).graphs if g.role == "decoder")
        past = next(p for p in self.graph.inputs if p.name.startswith("past_key_values"))
        self.hidden, self.heads, self.dim = (
            next(p for p in self.graph.inputs if p.name == "inputs_embeds").dims[2],
            past.dims[1],
            past.dims[3],
        )

    def cross(self, batch, seed=0):
        rng = np.random.default_rng(seed)
        names = [p.name for p in self.graph.inputs if p.name.startswith("cross.")]
        return {n: rng.normal(0, 1, (batch, self.heads, 6, self.dim)).astype(np.float32) for n in names}

    def embeds(self, new, batch=1, seed=0):
        return np.random.default_rng(seed).normal(0, 1, (batch, new, self.hidden)).astype(np.float32)

    def logits(self, embeds, cross, mask=None):
        """Of every position, [B, S, V]."""
        batch, new = embeds.shape[:2]
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((batch, new), np.int64) if mask is None else mask,
            "position_ids": np.broadcast_to(np.arange(new), (batch, new)).copy(),
            "logits_indices": np.arange(new),
            **cross,
        }
        for port in self.graph.inputs:
            if port.name.startswith("past_key_values"):
                feeds[port.name] = np.zeros((batch, self.heads, 0, self.dim), np.float32)
        return self.graph.run({k: torch.from_numpy(v) for k, v in feeds.items()})["logits"]


@pytest.fixture(scope="module", params=[(n, r) for n in NAMES for r in CONTRACT], ids="-".join)
def pair(request):
    name, runtime = request.param
    manifest, path = exported(name).manifest, exported(name).bundle
    states = tuple(map(state_port, manifest.states_of("decoder")))
    decoder = module(runtime).load_decoder(path / "graphs" / "decoder.onnx", states, CAPACITY, EXACT)
    yield decoder, Original(name)
    decoder.close()


@pytest.fixture
def decoder(pair):
    pair[0].reset()
    return pair[0]


@pytest.fixture
def original(pair):
    return pair[1]


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


def test_prefill_then_steps(decoder, original):
    embeds, cross = original.embeds(9), original.cross(1)
    expected = original.logits(embeds, cross)
    close(decoder.prefill(embeds[:, :4], cross=cross), expected[:, 3:4])
    assert decoder.length == 4
    close(decoder.prefill(embeds[:, 4:7]), expected[:, 6:7])
    for i in (7, 8):
        close(decoder.step(embeds[:, i : i + 1]), expected[:, i])
    assert decoder.length == 9


def test_logits_of_chosen_positions(decoder, original):
    embeds, cross = original.embeds(6), original.cross(1)
    found = decoder.prefill(embeds, cross=cross, logits_indices=np.array([0, 2, 5]))
    close(found, original.logits(embeds, cross)[:, [0, 2, 5]])


def test_one_position_first(decoder, original):
    embeds, cross = original.embeds(3), original.cross(1)
    expected = original.logits(embeds, cross)
    close(decoder.prefill(embeds[:, :1], cross=cross), expected[:, :1])
    close(decoder.step(embeds[:, 1:2]), expected[:, 1])


def test_a_batch_with_padding(decoder, original):
    embeds, cross = original.embeds(5, batch=3), original.cross(3)
    mask = np.ones((3, 5), np.int64)
    mask[0, :2] = 0
    expected = original.logits(embeds, cross, mask)
    close(decoder.prefill(embeds[:, :4], cross=cross, mask=mask[:, :4]), expected[:, 3:4])
    close(decoder.step(embeds[:, 4:]), expected[:, 4])


def test_truncate(decoder, original):
    embeds, other, cross = original.embeds(7), original.embeds(3, seed=1), original.cross(1)
    decoder.prefill(embeds, cross=cross)
    decoder.truncate(4)
    assert decoder.length == 4
    expected = original.logits(np.concatenate([embeds[:, :4], other], 1), cross)
    close(decoder.prefill(other), expected[:, -1:])


def test_truncate_to_nothing_and_go_on(decoder, original):
    embeds, cross = original.embeds(4), original.cross(1)
    decoder.prefill(original.embeds(5, seed=3), cross=cross)
    decoder.truncate(0)
    close(decoder.prefill(embeds), original.logits(embeds, cross)[:, -1:])


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_beyond_the_state(decoder, original, length):
    decoder.prefill(original.embeds(5), cross=original.cross(1))
    with pytest.raises(InputError, match="truncate"):
        decoder.truncate(length)
    assert decoder.length == 5


def test_forks_go_their_own_ways(decoder, original):
    prefix, cross = original.embeds(4), original.cross(1)
    decoder.prefill(prefix, cross=cross)
    tails = [original.embeds(3, seed=i) for i in (5, 6, 7)]
    forks = (*decoder.fork(2), decoder)
    wholes = [original.logits(np.concatenate([prefix, tail], 1), cross) for tail in tails]
    for i in range(3):
        for fork, tail, whole in zip(forks, tails, wholes, strict=True):
            close(fork.step(tail[:, i : i + 1]), whole[:, 4 + i])
    assert [f.length for f in forks] == [7, 7, 7]


def test_a_fork_survives_its_parents_reset(decoder, original):
    prefix, tail, cross = original.embeds(4), original.embeds(2, seed=8), original.cross(1)
    decoder.prefill(prefix, cross=cross)
    (fork,) = decoder.fork(1)
    decoder.reset()
    decoder.prefill(original.embeds(3, seed=9), cross=original.cross(1, seed=9))
    whole = original.logits(np.concatenate([prefix, tail], 1), cross)
    close(fork.prefill(tail), whole[:, -1:])


def test_reorder(decoder, original):
    embeds = original.embeds(5, batch=3)
    cross = original.cross(3)
    decoder.prefill(embeds, cross=cross)
    order = np.array([2, 0, 0])
    decoder.reorder(order)
    # Beams of one sound share its cross-attention, so rows of `cross` stay where they are.
    same = {k: np.broadcast_to(v[:1], v.shape).copy() for k, v in cross.items()}
    decoder.reset()
    decoder.prefill(embeds, cross=same)
    decoder.reorder(order)
    tail = original.embeds(1, batch=3, seed=4)
    whole = original.logits(np.concatenate([embeds[order], tail], 1), same)
    close(decoder.step(tail), whole[:, -1])


def test_reset_forgets_everything(decoder, original):
    embeds = original.embeds(5)
    decoder.prefill(original.embeds(6, batch=2, seed=2), cross=original.cross(2, seed=2))
    decoder.reset()
    assert decoder.length == 0
    cross = original.cross(1)
    close(decoder.prefill(embeds, cross=cross), original.logits(embeds, cross)[:, -1:])


def test_reset_forgets_cross(decoder, original):
    cross = original.cross(1)
    if not cross:
        pytest.skip("this decoder has no cross-attention")
    decoder.prefill(original.embeds(2), cross=cross)
    decoder.reset()
    with pytest.raises(InputError):
        decoder.prefill(original.embeds(2))


def test_context_full_leaves_the_state_alone(decoder, original):
    embeds, cross = original.embeds(CAPACITY), original.cross(1)
    expected = original.logits(embeds, cross)
    assert decoder.capacity == CAPACITY
    decoder.prefill(embeds[:, : CAPACITY - 1], cross=cross)
    with pytest.raises(ContextFull, match="do not fit"):
        decoder.prefill(original.embeds(2, seed=1))
    assert decoder.length == CAPACITY - 1
    close(decoder.step(embeds[:, -1:]), expected[:, -1])
    with pytest.raises(ContextFull):
        decoder.step(embeds[:, -1:])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda e: e[..., :-1],
        lambda e: e[0],
        lambda e: e.astype(np.int64),
        lambda e: np.concatenate([e, e], 0),
    ],
    ids=["hidden", "rank", "integers", "batch"],
)
def test_wrong_embeddings_leave_the_state_alone(decoder, original, wrong):
    embeds, cross = original.embeds(6), original.cross(1)
    decoder.prefill(embeds[:, :4], cross=cross)
    with pytest.raises(InputError):
        decoder.prefill(wrong(embeds[:, 4:]))
    assert decoder.length == 4
    close(decoder.prefill(embeds[:, 4:]), original.logits(embeds, cross)[:, -1:])


def test_half_precision_embeddings_are_cast(decoder, original):
    embeds, cross = original.embeds(4).astype(np.float16), original.cross(1)
    expected = original.logits(embeds.astype(np.float32), cross)
    close(decoder.prefill(embeds, cross=cross), expected[:, -1:])


def test_returned_logits_are_the_callers_own(decoder, original):
    embeds, cross = original.embeds(5), original.cross(1)
    first = decoder.prefill(embeds[:, :4], cross=cross)
    kept = first.copy()
    decoder.step(embeds[:, 4:])
    np.testing.assert_array_equal(first, kept)


def _slow_decoder(path):
    """logits = the embeddings through many products; the state is their concatenation."""
    width, products = 256, 300
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32)
    kv = ["batch", 1, "past", width]
    nodes = [
        helper.make_node("Unsqueeze", ["inputs_embeds", "one"], ["fresh"]),
        helper.make_node("Concat", ["past_key_values.0.key", "fresh"], ["present.0.key"], axis=2),
        helper.make_node("ReduceSum", ["present.0.key", "seen"], ["sum"], keepdims=0),
        helper.make_node("Add", ["inputs_embeds", "sum"], ["x0"]),
        *(helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(products)),
        helper.make_node("Identity", [f"x{products}"], ["logits"]),
    ]
    floats = [("inputs_embeds", ["batch", "new", width]), ("past_key_values.0.key", kv)]
    outputs = [("logits", ["batch", "new", width]), ("present.0.key", ["batch", 1, "total", width])]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in floats],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs],
        [
            onnx.numpy_helper.from_array(turn, "w"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
            onnx.numpy_helper.from_array(np.array([1, 2]), "seen"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return (StatePort("past_key_values.0.key", "present.0.key", (-1, 1, -1, width), 2),)


@pytest.mark.parametrize("runtime", CONTRACT)
def test_cancel_keeps_the_state(runtime, tmp_path):
    states = _slow_decoder(tmp_path / "slow.onnx")
    loader = module(runtime)
    one, other = (loader.load_decoder(tmp_path / "slow.onnx", states, 1 << 20, EXACT) for _ in range(2))
    rng = np.random.default_rng(1)
    first, tail = (rng.normal(0, 1, (1, n, 256)).astype(np.float32) for n in (5, 2))
    for decoder in (one, other):
        decoder.prefill(first)
    with cancelled(one), pytest.raises(InputError, match="could not run"):
        one.prefill(np.ones((1, 6_000 if runtime in PRETENDED else 40_000, 256), np.float32))
    assert one.length == 5
    close(one.prefill(tail), other.prefill(tail))
