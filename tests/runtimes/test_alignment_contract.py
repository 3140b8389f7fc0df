"""`Decoder.alignment` on every runtime: the cross-attention of the torch module, whatever was done to the state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgemm.errors import BundleError, InputError
from edgemm.runtimes.base import state_port
from edgemm.runtimes.registry import RUNTIMES
from tests.export.exported import EXACT, exported, plan
from tests.runtimes.pretend_gpu import CONTRACT, module

TOLERANCE = 1e-5
CAPACITY, SOURCE = 24, 9


def load(name, runtime, **options):
    states = tuple(map(state_port, exported(name).manifest.states_of("decoder")))
    path = exported(name).bundle / "graphs" / "decoder.onnx"
    return module(runtime).load_decoder(path, states, CAPACITY, replace(EXACT, **options))


def graph():
    return next(g for g in plan("whisper").graphs if g.role == "decoder")


def cross(seed=0):
    rng = np.random.default_rng(seed)
    names = [p for p in graph().inputs if p.name.startswith("cross.")]
    return {p.name: rng.normal(0, 1, (1, p.dims[1], SOURCE, p.dims[3])).astype(np.float32) for p in names}


def embeds(new, batch=1, seed=0):
    hidden = graph().inputs[0].dims[2]
    return np.random.default_rng(seed).normal(0, 1, (batch, new, hidden)).astype(np.float32)


def expected(embedded, sound):
    """The module's `alignment` [B, heads, S, T'] over all positions at once."""
    batch, new = embedded.shape[:2]
    feeds = {
        "inputs_embeds": embedded,
        "attention_mask": np.ones((batch, new), np.int64),
        "position_ids": np.broadcast_to(np.arange(new), (batch, new)).copy(),
        "logits_indices": np.arange(new),
        **{k: np.repeat(v, batch, 0) for k, v in sound.items()},
    }
    for port in graph().inputs:
        if port.name.startswith("past_key_values"):
            feeds[port.name] = np.zeros((batch, port.dims[1], 0, port.dims[3]), np.float32)
    return graph().run({k: torch.from_numpy(v) for k, v in feeds.items()})["alignment"]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-4)


@pytest.fixture(scope="module", params=CONTRACT)
def loaded(request):
    decoder = load("whisper", request.param)
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(loaded):
    loaded.reset()
    return loaded


def test_of_the_last_call(decoder):
    given, sound = embeds(6), cross()
    wanted = expected(given, sound)
    decoder.prefill(given[:, :4], cross=sound)
    first = decoder.alignment()
    close(first, wanted[:, :, :4])
    kept = first.copy()
    for i in (4, 5):
        decoder.step(given[:, i : i + 1])
        close(decoder.alignment(), wanted[:, :, i : i + 1])
    np.testing.assert_array_equal(first, kept)


def test_beams(decoder):
    given, sound = embeds(4), cross()
    decoder.prefill(given, cross=sound)
    decoder.reorder(np.zeros(3, np.int64))
    close(decoder.alignment(), np.repeat(expected(given, sound), 3, 0))
    tails = embeds(1, batch=3, seed=1)
    decoder.step(tails)
    wanted = expected(np.concatenate([np.repeat(given, 3, 0), tails], 1), sound)[:, :, 4:]
    close(decoder.alignment(), wanted)
    apart = [np.abs(wanted[a] - wanted[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 1e-3, "rows that are alike would hide an order"
    for order in ([2, 0, 0], [1, 0, 2]):
        wanted = wanted[order]
        decoder.reorder(np.array(order))
        close(decoder.alignment(), wanted)


def test_forks_have_their_own(decoder):
    given, sound = embeds(4), cross()
    decoder.prefill(given, cross=sound)
    (fork,) = decoder.fork(1)
    with pytest.raises(InputError, match="nothing yet"):
        fork.alignment()
    tail = embeds(1, seed=2)
    fork.step(tail)
    close(fork.alignment(), expected(np.concatenate([given, tail], 1), sound)[:, :, 4:])
    close(decoder.alignment(), expected(given, sound))


def test_none_before_the_first_call(decoder):
    decoder.prefill(embeds(2), cross=cross())
    decoder.reset()
    with pytest.raises(InputError, match="nothing yet"):
        decoder.alignment()


@pytest.mark.parametrize("runtime", CONTRACT)
def test_a_decoder_loaded_without_says_the_same(runtime):
    given, sound = embeds(5), cross()
    logits = []
    for alignment in (True, False):
        decoder = load("whisper", runtime, alignment=alignment)
        logits.append(decoder.prefill(given, cross=sound))
        if not alignment and runtime in RUNTIMES and RUNTIMES[runtime].fuses_attention:
            with pytest.raises(BundleError, match="alignment"):
                decoder.alignment()
        decoder.close()
    np.testing.assert_allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("runtime", CONTRACT)
def test_a_graph_without(runtime):
    decoder = load("moonshine", runtime)
    with pytest.raises(BundleError, match="alignment"):
        decoder.alignment()
    decoder.close()
