"""A decoder over buffers of a fixed size says what it says with a growing state; its steps are replayed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgemm.runtimes import tensorrt
from edgemm.runtimes.base import StatePort
from edgemm.runtimes.engines import fixed_profile, profile
from edgemm.runtimes.lowering.fixed_state import PLACES, lower
from edgemm.runtimes.lowering.graph import Unrecognised
from edgemm.runtimes.tensorrt_decoder import FixedDecoder
from tests.export.exported import EXACT, exported
from tests.runtimes.lowering_decoders import KINDS, decoder, written
from tests.runtimes.pretend_device import PretendDevice
from tests.runtimes.pretend_gpu import pretending, write_engine

CAPACITY = 160


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def _feeds(graph: ort.InferenceSession, past: int, new: int, batch: int) -> dict[str, Any]:
    """Random numbers, the last row's first positions padding."""
    rng = np.random.default_rng(past + new)
    shapes = {i.name: i.shape for i in graph.get_inputs()}
    mask = np.ones((batch, past + new), np.int64)
    mask[-1, : past // 2] = 0
    feeds = {
        name: rng.normal(size=(batch, shape[1], past, shape[3])).astype(np.float32)
        for name, shape in shapes.items()
        if name.startswith("past_key_values")
    }
    return feeds | {
        "inputs_embeds": rng.normal(size=(batch, new, shapes["inputs_embeds"][2])).astype(np.float32),
        "attention_mask": mask,
        "position_ids": np.broadcast_to(np.arange(past, past + new), (batch, new)).copy(),
        "logits_indices": np.arange(new),
    }


def _buffered(feeds: dict[str, Any], past: int, new: int, buffer: int) -> dict[str, Any]:
    """The same in buffers, whose rest holds any numbers."""
    rng = np.random.default_rng(1)
    held = dict(feeds)
    for name, value in feeds.items():
        if name.startswith("past_key_values"):
            held[name] = rng.normal(size=(*value.shape[:2], buffer, value.shape[3])).astype(np.float32)
            held[name][:, :, :past] = value
    mask = np.ones((feeds["attention_mask"].shape[0], buffer), np.int64)
    mask[:, : past + new] = feeds["attention_mask"]
    return held | {"attention_mask": mask, PLACES: np.arange(past, past + new)}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_growing_decoder(kind: str, precision: str, tmp_path: Path) -> None:
    path, states = written(kind, precision)
    growing, fixed = _session(path), _session(lower(path, states, CAPACITY).save(tmp_path))
    names = [o.name for o in growing.get_outputs()]
    for past, new, buffer, batch in ((0, 1, 1, 1), (0, 7, 16, 3), (4, 5, 9, 2), (31, 1, 64, 1), (63, 1, 64, 2)):
        feeds = _feeds(growing, past, new, batch)
        expected = growing.run(names, feeds)
        found = fixed.run(names, _buffered(feeds, past, new, buffer))
        for name, one, other in zip(names, expected, found, strict=True):
            same = other[:, :, : past + new] if name.startswith("present") else other
            np.testing.assert_allclose(same, one, atol=2e-5 * max(1.0, float(np.abs(one).max())), err_msg=name)


def test_a_mask_of_another_form_is_left_alone(tmp_path: Path) -> None:
    import onnx

    path, states = written("grouped")
    model = onnx.load(path)
    turned = [n for n in model.graph.node if n.op_type in ("LessOrEqual", "GreaterOrEqual", "Less", "Greater")]
    assert turned
    for node in turned:
        node.input[:] = node.input[::-1]
    onnx.save(model, tmp_path / "turned.onnx")
    with pytest.raises(Unrecognised, match="causal"):
        lower(tmp_path / "turned.onnx", states, CAPACITY)
    with pytest.raises(Unrecognised, match="pairs"):
        lower(path, states[:1], CAPACITY)


class Opened:
    """A decoder on a pretended GPU, and what it is compared with."""

    def __init__(self, path: Path, folder: Path, states: tuple[StatePort, ...]) -> None:
        self.device = PretendDevice()
        graph = lower(path, states, CAPACITY).save(folder)
        with pretending(self.device, target="tensorrt"):
            engine = write_engine(folder, graph, target="tensorrt")
            self.decoder = tensorrt.load_decoder(engine, states, CAPACITY, EXACT)
        self.growing = _session(path)

    def expected(self, embeds: Any) -> Any:
        """Logits of every position."""
        feeds = _feeds(self.growing, 0, embeds.shape[1], embeds.shape[0])
        feeds |= {"inputs_embeds": embeds, "attention_mask": np.ones(embeds.shape[:2], np.int64)}
        return self.growing.run(["logits"], feeds)[0]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    one = Opened(written("grouped")[0], tmp_path, written("grouped")[1])
    with pretending(one.device, target="tensorrt"):
        yield one
        one.decoder.close()


def _embeds(new: int, batch: int = 1) -> Any:
    return np.random.default_rng(new).normal(size=(batch, new, decoder("grouped").inputs[0].dims[2])).astype("f4")


def _close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))


def test_steps_of_one_buffer_are_replayed_and_a_longer_one_keeps_the_state(opened: Opened) -> None:
    one, embeds = opened.decoder, _embeds(70)
    assert isinstance(one, FixedDecoder)
    whole = opened.expected(embeds)
    _close(one.prefill(embeds[:, :56])[:, 0], whole[:, 55])
    launches, sizes = [], []
    for i in range(56, 70):
        _close(one.step(embeds[:, i : i + 1]), whole[:, i])
        launches.append(opened.device.launches)
        sizes.append(next(iter(one._past.values())).shape[2])
    assert sizes == [64] * 8 + [128] * 6
    # The first call at each of the two places, then each again; anew after the buffers have grown.
    assert launches == [0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 9, 10]
    assert one.length == 70


def test_memory_does_not_grow_with_the_tokens(opened: Opened) -> None:
    one, embeds = opened.decoder, _embeds(60)
    one.prefill(embeds[:, :10])
    one.step(embeds[:, 10:11])
    one.step(embeds[:, 11:12])
    held = sum(b.nbytes for b in opened.device.blocks.values())
    for i in range(12, 60):
        one.step(embeds[:, i : i + 1])
    assert sum(b.nbytes for b in opened.device.blocks.values()) == held


def test_nothing_is_copied_to_forget(opened: Opened) -> None:
    one, embeds = opened.decoder, _embeds(20)
    one.prefill(embeds)
    before = one._past
    one.truncate(5)
    assert one._past is before
    other = _embeds(4)
    whole = opened.expected(np.concatenate([embeds[:, :5], other], 1))
    _close(one.prefill(other)[:, 0], whole[:, -1])


def test_another_batch_after_everything_is_forgotten(opened: Opened) -> None:
    one = opened.decoder
    one.prefill(_embeds(6))
    one.truncate(0)
    embeds = _embeds(5, batch=3)
    _close(one.prefill(embeds)[:, 0], opened.expected(embeds)[:, -1])


def test_the_profile_of_buffers() -> None:
    manifest = exported("smolvlm").manifest
    component = next(c for c in manifest.components if c.role == "decoder")
    growing, fixed = profile(component), fixed_profile(component, manifest.states_of(component.name))
    assert [shape[1] for shape in growing["attention_mask"]] == [1, 257, 1024]
    assert [shape[1] for shape in fixed["attention_mask"]] == [1, 512, 1024]
    assert [shape[2] for shape in fixed["past_key_values.1.value"]] == [1, 512, 1024]
    assert fixed[PLACES] == [[1], [1], [512]]
    assert fixed["inputs_embeds"] == growing["inputs_embeds"]
    assert fixed_profile(next(c for c in manifest.components if c.role != "decoder"), ()) == {}
