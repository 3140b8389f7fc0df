"""OpenVINO's lowered decoder: the operator that it is made for, the portable graph's numbers, the same contract."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgemm.errors import InputError
from edgemm.runtimes import onnxruntime, openvino
from edgemm.runtimes.base import SessionOptions
from tests.export.exported import EXACT
from tests.runtimes.cancelling import cancelled
from tests.runtimes.lowering_decoders import KINDS, written
from tests.runtimes.test_decoder_contract import (
    CAPACITY,
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
from tests.runtimes.test_lowering_decoder import Tiny, forced_logits

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
TOLERANCE = 1e-4


def load(options, kind="grouped", precision="fp32", capacity=128, runtime=openvino):
    path, states = written(kind, precision)
    return runtime.load_decoder(path, states, capacity, options)


@pytest.fixture(scope="module", params=["grouped", "one_head", "narrow_heads"])
def pair(request):
    """The imported contract runs on the lowered decoder."""
    lowered = load(EXACT, request.param, capacity=CAPACITY)
    assert lowered.form == "lowered"
    yield lowered, Tiny(request.param)
    lowered.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exact_numbers_are_the_portable_graphs(kind, precision):
    lowered = load(EXACT, kind, precision)
    portable = load(SessionOptions(exact=True, int8_weights=True), kind, precision, runtime=onnxruntime)
    assert (lowered.form, portable.form) == ("lowered", "portable")
    found, expected = (forced_logits(d, Tiny().hidden, 33, seed=1) for d in (lowered, portable))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("kind", ["grouped", "one_head"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_fast_numbers_are_near(kind, precision):
    found, expected = (forced_logits(load(o, kind, precision), Tiny().hidden, 7, seed=2) for o in (FAST, EXACT))
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    # Where the chip has them, bfloat16 and a cache of eight bits, over weights made wide to tell the rows apart.
    assert cosine.min() >= 0.9
    assert np.median(cosine) >= 0.99


@pytest.mark.parametrize("options", [EXACT, FAST], ids=["exact", "fast"])
@pytest.mark.parametrize("kind", ["grouped", "every_head", "one_head"])
def test_every_layer_is_one_operator_with_its_cache(kind, options):
    lowered = load(options, kind, "int8")
    lowered.prefill(np.ones((1, 3, 128), np.float32))
    operators = [n.get_rt_info()["layerType"].astype(str) for n in runtime_model(lowered).get_ordered_ops()]
    assert operators.count("ScaledDotProductAttention") == 2
    caches = [n for n in runtime_model(lowered).get_ordered_ops() if "kv_cache_precision" in n.get_rt_info()]
    assert len(caches) == 2, "no ScaledDotProductAttentionWithKVCache"
    assert "Softmax" not in operators


def runtime_model(decoder):
    return decoder._request.graph.compiled.get_runtime_model()


def test_rows_that_are_moved_and_then_cut_forked_or_moved_again():
    rng = np.random.default_rng(0)
    original = Tiny()
    embeds, tail = (rng.normal(0, 1, (3, n, 128)).astype(np.float32) for n in (6, 1))
    first, second = np.array([2, 0, 0]), np.array([1, 1, 0])
    order = first[second]
    lowered = load(EXACT)

    def moved():
        lowered.reset()
        lowered.prefill(embeds)
        lowered.reorder(first)
        lowered.reorder(second)

    expected = original.logits(np.concatenate([embeds[order], tail], 1), {})[:, -1]
    moved()
    (fork,) = lowered.fork(1)
    close(fork.step(tail), expected)
    close(lowered.step(tail), expected)
    moved()
    lowered.truncate(4)
    close(lowered.step(tail), original.logits(np.concatenate([embeds[order][:, :4], tail], 1), {})[:, -1])


def test_fewer_rows_go_on():
    rng = np.random.default_rng(3)
    embeds, tail = rng.normal(0, 1, (3, 5, 128)).astype(np.float32), rng.normal(0, 1, (1, 1, 128)).astype(np.float32)
    lowered = load(EXACT)
    lowered.prefill(embeds)
    lowered.reorder(np.array([1]))
    close(lowered.step(tail), Tiny().logits(np.concatenate([embeds[1:2], tail], 1), {})[:, -1])


def test_a_cancelled_call_leaves_the_state():
    """Layers that it had reached go back, and rows that it was to move are moved once."""
    rng = np.random.default_rng(5)
    first, tail = (rng.normal(0, 1, (2, n, 128)).astype(np.float32) for n in (5, 2))
    lowered = load(EXACT, capacity=1 << 20)
    lowered.prefill(first)
    lowered.reorder(np.array([1, 0]))
    with cancelled(lowered), pytest.raises(InputError, match="could not run"):
        lowered.prefill(np.ones((2, 6_000, 128), np.float32))
    assert lowered.length == 5
    whole = np.concatenate([first[::-1], tail], 1)
    close(lowered.prefill(tail), Tiny().logits(whole, {})[:, -1:])


def test_another_form_runs_as_it_is(tmp_path):
    path, states = written("grouped")
    model = onnx.load(path)
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    softmax.op_type = "LogSoftmax"
    onnx.save(model, tmp_path / "decoder.onnx")
    other = openvino.load_decoder(tmp_path / "decoder.onnx", states, 32, EXACT)
    assert other.form == "portable"
    assert "softmax" in other.reason
    ort = onnxruntime.load_decoder(tmp_path / "decoder.onnx", states, 32, EXACT)
    embeds = np.random.default_rng(1).normal(0, 1, (1, 4, 128)).astype(np.float32)
    close(other.prefill(embeds), ort.prefill(embeds))
