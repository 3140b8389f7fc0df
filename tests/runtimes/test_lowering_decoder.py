"""The lowered decoder of ONNX Runtime against the portable one: the same numbers, and the same contract."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgemm.errors import InputError
from edgemm.runtimes import onnxruntime
from edgemm.runtimes.base import SessionOptions, state_port
from edgemm.runtimes.lowering.attention import SEQLENS, TOTAL
from edgemm.runtimes.lowering.cache import lowered_decoder
from tests.export.exported import EXACT, exported
from tests.runtimes.lowering_decoders import KINDS, written
from tests.runtimes.lowering_decoders import decoder as decoder_graph
from tests.runtimes.test_decoder_contract import (
    CAPACITY,
    Original,
    close,
    decoder,
    original,
    test_a_batch_with_padding,
    test_a_fork_survives_its_parents_reset,
    test_context_full_leaves_the_state_alone,
    test_forks_go_their_own_ways,
    test_half_precision_embeddings_are_cast,
    test_logits_of_chosen_positions,
    test_one_position_first,
    test_prefill_then_steps,
    test_reorder,
    test_reset_forgets_everything,
    test_returned_logits_are_the_callers_own,
    test_truncate,
    test_truncate_beyond_the_state,
    test_truncate_to_nothing_and_go_on,
    test_wrong_embeddings_leave_the_state_alone,
)

__all__ = [
    "decoder",
    "original",
    "test_a_batch_with_padding",
    "test_a_fork_survives_its_parents_reset",
    "test_context_full_leaves_the_state_alone",
    "test_forks_go_their_own_ways",
    "test_half_precision_embeddings_are_cast",
    "test_logits_of_chosen_positions",
    "test_one_position_first",
    "test_prefill_then_steps",
    "test_reorder",
    "test_reset_forgets_everything",
    "test_returned_logits_are_the_callers_own",
    "test_truncate",
    "test_truncate_beyond_the_state",
    "test_truncate_to_nothing_and_go_on",
    "test_wrong_embeddings_leave_the_state_alone",
]

FAST = SessionOptions(exact=False)
LEAST_COSINE = {"fp32": 0.9999, "int8": 0.99, "int4": 0.99}
FORCED = 64


def load(options, kind="grouped", precision="fp32", capacity=128):
    path, states = written(kind, precision)
    return onnxruntime.load_decoder(path, states, capacity, options)


class Tiny(Original):
    """The torch module of one of `KINDS`."""

    def __init__(self, kind="grouped"):
        self.graph = decoder_graph(kind)
        self.hidden, self.heads, self.dim = 128, *self.graph.inputs[-1].dims[1::2]


@pytest.fixture(scope="module")
def pair():
    """The imported contract runs on the lowered decoder."""
    lowered = load(FAST, capacity=CAPACITY)
    assert lowered.form == "lowered"
    yield lowered, Tiny()
    lowered.close()


def forced_logits(decoder, hidden, prompt, seed=0):
    """Logits of the prompt's last position and of `FORCED` random embeddings after it, [FORCED + 1, V]."""
    rng = np.random.default_rng(seed)
    embeds = rng.normal(0, 1, (1, prompt + FORCED, hidden)).astype(np.float32)
    rows = [decoder.prefill(embeds[:, :prompt])[:, -1]]
    rows += [decoder.step(embeds[:, i : i + 1]) for i in range(prompt, prompt + FORCED)]
    return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "narrow_heads"])
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("prompt", [1, 7, 33])
def test_forced_tokens(kind, precision, prompt):
    lowered, portable = (load(options, kind, precision) for options in (FAST, EXACT))
    assert (lowered.form, portable.form) == ("lowered", "portable")
    hidden = Tiny().hidden
    found, expected = (forced_logits(d, hidden, prompt, seed=prompt) for d in (lowered, portable))
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= LEAST_COSINE[precision]
    if precision == "fp32":
        top = np.sort(expected, 1)
        clear = top[:, -1] - top[:, -2] > 1e-3
        assert clear.sum() > FORCED // 2
        np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])


def operators(model):
    return {n.op_type for n in model.graph.node}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_graph_has_the_fast_form(precision):
    """Packed products: query with key and value, gate with up."""
    path, states = written("grouped", precision)
    model = onnx.load(lowered_decoder(path, states, 128).path, load_external_data=False)
    layers = len(states) // 2
    count = {op: sum(n.op_type == op for n in model.graph.node) for op in operators(model)}
    assert count["GroupQueryAttention"] == count["QuickGelu"] == layers
    assert count["SimplifiedLayerNormalization"] == 2 * layers + 1
    products = "MatMul" if precision == "fp32" else "MatMulNBits"
    assert count[products] == 4 * layers + 1
    bits = [a.i for n in model.graph.node for a in n.attribute if n.op_type == products and a.name == "bits"]
    assert sorted(bits) == {"fp32": [], "int8": [8] * (4 * layers + 1), "int4": [4] * 4 * layers + [8]}[precision]
    assert not operators(model) & {"Sigmoid", "Softmax", "Cos", "Shape", "Concat", "DequantizeLinear"}
    inputs = {v.name for v in model.graph.input}
    assert {SEQLENS, TOTAL} < inputs
    assert not inputs & {"attention_mask", "position_ids"}


def test_int4_values_are_not_rounded_again():
    path, states = written("grouped", "int4")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    after = onnx.load(lowered_decoder(path, states, 128).path)
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    products = [n for n in after.graph.node if n.op_type == "MatMulNBits" and n.input[1].endswith(".uint4")]
    assert products
    for node in products:
        names = node.input[1].removesuffix(".uint4").split("+")
        expected = np.concatenate([tensors[n].astype(np.int8) for n in names], axis=1)
        halves = stored[node.input[1]].reshape(expected.shape[1], -1)
        values = np.stack([halves & 0xF, halves >> 4], -1).reshape(expected.shape[1], -1)
        np.testing.assert_array_equal(values.T.astype(np.int8) - 8, expected)


def test_int8_values_are_not_rounded_again():
    path, states = written("grouped", "int8")
    before = onnx.load(path)
    after = onnx.load(lowered_decoder(path, states, 128).path)
    tensors = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    head = next(n for n in after.graph.node if n.output[0] == "logits")
    stored = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}[head.input[1]]
    name = head.input[1].removesuffix(".uint8")
    np.testing.assert_array_equal(stored.reshape(len(stored), -1).T.astype(np.int16) - 128, tensors[name])


def test_buffers_grow_and_keep_what_they_held():
    lowered, portable = load(FAST, capacity=500), load(EXACT, capacity=500)
    lowered._least = 8
    hidden = Tiny().hidden
    expected = forced_logits(portable, hidden, 5)
    close(forced_logits(lowered, hidden, 5), expected)


def test_given_positions_move_to_the_portable_graph():
    """Rotary tables lie inside the operator, which counts positions itself."""
    original = Tiny()
    lowered, portable = load(FAST), load(EXACT)
    embeds = original.embeds(6)
    positions = np.array([[0, 1, 2, 9, 10, 11]])
    for d in (lowered, portable):
        d.prefill(embeds[:, :3], positions=positions[:, :3])
    assert lowered.form == "lowered"
    found, expected = (d.prefill(embeds[:, 3:], positions=positions[:, 3:]) for d in (lowered, portable))
    assert lowered.form == "portable"
    assert "one row" in lowered.reason
    close(found, expected)
    lowered.reset()
    assert lowered.form == "lowered"


def test_rows_are_made_by_reorder():
    original = Tiny()
    lowered, embeds = load(FAST), original.embeds(5)
    lowered.prefill(embeds[:, :4])
    lowered.reorder(np.array([0]))
    assert lowered.form == "lowered"
    lowered.reorder(np.array([0, 0]))
    tail = np.repeat(embeds[:, 4:], 2, 0)
    close(lowered.step(tail), original.logits(np.repeat(embeds, 2, 0), {})[:, -1])


def test_an_unknown_extra_is_refused():
    with pytest.raises(InputError, match="nothing_like_it"):
        load(FAST).prefill(Tiny().embeds(2), extras={"nothing_like_it": np.zeros(1, np.float32)})


def test_cross_attention_is_left_alone():
    report = exported("moonshine")
    states = tuple(map(state_port, report.manifest.states_of("decoder")))
    decoder = onnxruntime.load_decoder(report.bundle / "graphs" / "decoder.onnx", states, 64, FAST)
    assert decoder.form == "portable"
    assert "cross-attention" in decoder.reason


def test_heads_that_the_operator_does_not_take():
    decoder = load(FAST, "narrow_heads")
    assert decoder.form == "portable"
    assert "12" in decoder.reason


def test_exact_numbers_are_left_alone():
    decoder = load(EXACT)
    assert (decoder.form, decoder.reason) == ("portable", "")


def _copy(tmp_path):
    """A copy of the decoder's graph that a test may spoil."""
    path, states = written("grouped")
    for file in path.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / path.name, states


def _change(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def _window(graph):
    """Let every query see its own and later positions: not causal."""
    next(n for n in graph.node if n.op_type == "LessOrEqual").op_type = "GreaterOrEqual"


def _softmax_axis(graph):
    node = next(n for n in graph.node if n.op_type == "Softmax")
    next(a for a in node.attribute if a.name == "axis").i = 2


def _head_order(graph):
    rows = next(n.input[1] for n in graph.node if n.op_type == "Gather" and n.input[0].startswith("present"))
    tensor = next(t for t in graph.initializer if t.name == rows)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), rows))


def _half_a_state(graph):
    node = next(n for n in graph.node if n.output[0] == "present.1.key")
    node.input[0], node.input[1] = node.input[1], node.input[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_window, "not causal"),
        (_softmax_axis, "softmax"),
        (_head_order, "order of the rows"),
        (_half_a_state, "present.1.key"),
    ],
)
def test_an_unrecognised_graph_falls_back(tmp_path, change, reason):
    path, states = _copy(tmp_path)
    _change(path, change)
    decoder = onnxruntime.load_decoder(path, states, 64, FAST)
    assert decoder.form == "portable"
    assert reason in decoder.reason
    assert np.isfinite(decoder.prefill(Tiny().embeds(3))).all()


def _other_angles(graph):
    """Positions that reach the angles rounded to even numbers: a function of the position still."""
    node = next(n for n in graph.node if n.op_type == "Cos")
    node.op_type = "Sin"


def test_rotary_tables_are_the_graphs_own(tmp_path):
    """What the tables hold is what the graph computes, whatever it computes."""
    path, states = _copy(tmp_path)
    _change(path, _other_angles)
    lowered, portable = (onnxruntime.load_decoder(path, states, 128, o) for o in (FAST, EXACT))
    assert lowered.form == "lowered"
    hidden = Tiny().hidden
    expected = forced_logits(portable, hidden, 5)
    close(forced_logits(lowered, hidden, 5), expected)
    assert np.abs(expected - forced_logits(load(EXACT), hidden, 5)).max() > 0.01


def test_the_cache_is_used_and_checked(tmp_path):
    path, states = _copy(tmp_path)
    first = lowered_decoder(path, states, 32).path
    stamp = first.stat().st_mtime_ns
    assert lowered_decoder(path, states, 32).path.stat().st_mtime_ns == stamp
    assert lowered_decoder(path, states, 33).path != first
    whole = (first.parent / "decoder.data").read_bytes()
    (first.parent / "decoder.data").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert lowered_decoder(path, states, 32).path == first
    assert (first.parent / "decoder.data").read_bytes() == whole
    (first.parent / "lowered.json").write_text(json.dumps(["torn"]))
    assert lowered_decoder(path, states, 32).path == first


def test_other_weights_are_lowered_anew(tmp_path):
    path, states = _copy(tmp_path)
    first = lowered_decoder(path, states, 32).path
    data = path.with_name("decoder.data")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert lowered_decoder(path, states, 32).path != first


def test_without_a_place_to_keep_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    decoder = load(FAST)
    assert decoder.form == "portable"
    assert "cannot be kept" in decoder.reason
