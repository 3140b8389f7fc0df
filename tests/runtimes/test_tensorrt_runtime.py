"""TensorRT at run time, above the GPU: what is refused, what is kept on the device, replayed, remembered and freed.

No engine was ever run for this: the GPU and the library are those of `pretend_gpu`.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemm.bundle.files import cache_dir, sha256_of
from edgemm.bundle.manifest import Component
from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.errors import BundleError, EdgemmError, InputError, RuntimeUnavailable
from edgemm.model import Model
from edgemm.runtimes import engines, registry, tensorrt
from edgemm.runtimes.base import StatePort, as_numpy
from edgemm.runtimes.cuda import DeviceError, why_no_gpu
from edgemm.runtimes.engines import Note, Plan, Tell, graph_hash
from edgemm.runtimes.lowering.tensorrt import halved, lower, read, save
from tests.export.exported import EXACT, exported, model, picture
from tests.runtimes import pretend_gpu
from tests.runtimes.pretend_device import PretendDevice
from tests.runtimes.pretend_gpu import pretending, write_engine

RTX = "tensorrt-rtx"


@pytest.fixture
def device() -> PretendDevice:
    return PretendDevice()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = 2x + 1, [rows, 8]."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])]
    return _save(nodes, tmp_path / "double.onnx", [("x", ["rows", 8])], [("y", ["rows", 8])], two=2.0, one=1.0)


def _save(nodes: list[Any], path: Path, inputs: list[Any], outputs: list[Any], **constants: float) -> Path:
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in side] for side in (inputs, outputs)]
    weights = [onnx.numpy_helper.from_array(np.array(v, np.float32), n) for n, v in constants.items()]
    made = helper.make_graph(nodes, path.stem, *ports, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def _x(rows: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def _note(path: Path, **changes: Any) -> None:
    note = path.with_suffix(".json")
    about = json.loads(note.read_text())
    about["engine"] |= changes
    note.write_text(json.dumps(about))


REFUSED = {
    "truncated": (_cut, "torn"),
    "empty": (lambda p: p.write_bytes(b""), "torn"),
    "changed": (_change, "changed after it was built"),
    "gone": (Path.unlink, "cannot be read"),
    "without a note": (lambda p: p.with_suffix(".json").unlink(), "missing"),
    "with half a note": (lambda p: p.with_suffix(".json").write_text("{"), "not valid"),
    "of an older library": (lambda p: _note(p, builder=f"{RTX} 1.6.0"), "1.6.0, tensorrt-rtx 1.7.9 is installed"),
    "for another GPU": (lambda p: _note(p, gpu=["sm120"]), "built for sm120; Pretend GPU is sm89"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_engine_is_refused_before_it_is_deserialized(
    case: str, graph: Path, device: PretendDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm, said = REFUSED[case]
    path = write_engine(graph.parent, graph)
    harm(path)
    monkeypatch.setattr(pretend_gpu.Runtime, "deserialize_cuda_engine", lambda *_: pytest.fail("it was deserialized"))
    with pretending(device), pytest.raises(BundleError, match=said) as caught:
        tensorrt.load_session(path, EXACT)
    assert "edgemm build" in caught.value.hint
    assert not device.blocks


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"ftrt" + bytes(60), "no engine of tensorrt-rtx"),
        (b"vtrt\x01" + bytes(59), "another version"),
        (b"vtrt\x06" + bytes(59), "not built for this GPU; the NVIDIA driver is too old"),
        (b"vtrt\x20" + bytes(59), "malformed"),
    ],
)
def test_what_the_library_says_of_the_header(header: bytes, said: str, graph: Path, device: PretendDevice) -> None:
    path = write_engine(graph.parent, graph, header=header)
    with pretending(device), pytest.raises(BundleError, match=said):
        tensorrt.load_session(path, EXACT)


def test_an_engine_that_cannot_be_deserialized(graph: Path, device: PretendDevice) -> None:
    path = write_engine(graph.parent, graph)
    graph.unlink()
    with (
        pretending(device),
        pytest.raises(BundleError, match=r"cannot load double\.onnx\.engine: deserializing failed"),
    ):
        tensorrt.load_session(path, EXACT)


def test_a_driver_that_is_too_old(graph: Path, device: PretendDevice) -> None:
    device.driver = 12020
    path = write_engine(graph.parent, graph)
    with pretending(device), pytest.raises(RuntimeUnavailable, match=r"serves CUDA 12\.2; .* needs 13") as caught:
        tensorrt.load_session(path, EXACT)
    assert "pip install tensorrt-rtx-cu12" in caught.value.hint


@pytest.mark.skipif(not why_no_gpu(), reason="there is a GPU here")
def test_without_a_gpu(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded, `auto` goes elsewhere, and what was asked for by name is an error."""
    monkeypatch.setitem(registry.RUNTIMES, RTX, replace(registry.RUNTIMES[RTX], package="onnx"))
    with pytest.raises(RuntimeUnavailable, match="tensorrt-rtx cannot run here: there is no GPU") as caught:
        registry.choose(RTX, "model")
    assert "--runtime auto" in caught.value.hint
    assert registry.choose("auto", "model", only=(RTX,)) == registry.FALLBACK
    monkeypatch.setattr("edgemm.runtimes.tensorrt_engine.installed_builder", lambda t: f"{t} {pretend_gpu.VERSION}")
    with pytest.raises(RuntimeUnavailable, match="no GPU"):
        tensorrt.load_session(write_engine(graph.parent, graph), EXACT)


def test_auto_takes_no_engine_even_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "")
    for name in ("tensorrt", RTX):
        monkeypatch.setitem(registry.RUNTIMES, name, replace(registry.RUNTIMES[name], package="onnx"))
    for role in ("decoder", "vision_encoder", "model"):
        assert registry.choose("auto", role) in ("onnxruntime", "openvino")


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_steady_calls_are_replayed(graph: Path, device: PretendDevice, cuda_graphs: bool) -> None:
    path = write_engine(graph.parent, graph, target="tensorrt")
    with pretending(device, target="tensorrt"):
        session = tensorrt.load_session(path, replace(EXACT, cuda_graphs=cuda_graphs))
    launches = []
    for rows, seed in [(4, 0), (4, 1), (4, 2), (2, 3), (2, 4), (4, 5)]:
        found = as_numpy(session.run({"x": _x(rows, seed)})["y"])
        np.testing.assert_array_equal(found, 2 * _x(rows, seed) + 1)
        launches.append(device.launches)
    assert launches == ([0, 1, 2, 2, 3, 3] if cuda_graphs else [0] * 6)
    session.run({"x": _x(4)}, keep=("y",))
    assert device.launches == launches[-1]
    session.close()


def test_a_graph_that_cannot_be_captured_is_run_as_it_is(
    graph: Path, device: PretendDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_stream: int) -> None:
        raise DeviceError("cuStreamBeginCapture_v2 failed")

    monkeypatch.setattr(device, "begin_capture", refuse)
    with pretending(device, target="tensorrt"):
        session = tensorrt.load_session(write_engine(graph.parent, graph, target="tensorrt"), EXACT)
    for seed in range(3):
        np.testing.assert_array_equal(as_numpy(session.run({"x": _x(4, seed)})["y"]), 2 * _x(4, seed) + 1)
    session.close()


def test_rtx_captures_by_itself(graph: Path, device: PretendDevice) -> None:
    path = write_engine(graph.parent, graph)
    settings = {}
    for cuda_graphs in (True, False):
        with pretending(device):
            session = tensorrt.load_session(path, replace(EXACT, cuda_graphs=cuda_graphs))
        for _ in range(3):
            session.run({"x": _x(4)})
        settings[cuda_graphs] = session._it.engine.configs[-1].cuda_graph_strategy.name
        session.close()
    assert settings == {True: "WHOLE_GRAPH_CAPTURE", False: "DISABLED"}


def test_kernels_are_remembered(graph: Path, device: PretendDevice) -> None:
    path = write_engine(graph.parent, graph)

    def open_and_close() -> bytes:
        with pretending(device):
            session = tensorrt.load_session(path, EXACT)
        known: bytes = session._it._cache.known
        session.close()
        return known

    assert open_and_close() == b""
    (kept,) = cache_dir("engines", "kernels").glob(f"{sha256_of(path)}.sm89.cache")
    assert kept.read_bytes() == b"kernels"
    kept.write_bytes(b"kernels of before")
    assert open_and_close() == b"kernels of before"
    kept.write_bytes(b"of another driver")
    assert open_and_close() == b""
    assert kept.read_bytes() == b"kernels"


def test_shapes_outside_the_profile(graph: Path, device: PretendDevice) -> None:
    path = write_engine(graph.parent, graph, profile={"x": [[1, 8], [2, 8], [3, 8]]})
    with pretending(device):
        session = tensorrt.load_session(path, EXACT)
    with pytest.raises(InputError, match=r"x takes \[1, 8\] to \[3, 8\], not \[4, 8\]"):
        session.run({"x": _x(4)})
    assert session.run({"x": _x(3)})
    session.close()


def test_memory_that_is_short(graph: Path) -> None:
    device = PretendDevice(most=1 << 16)
    with pretending(device):
        session = tensorrt.load_session(write_engine(graph.parent, graph), EXACT)
    with pytest.raises(InputError, match="OUT_OF_MEMORY"):
        session.run({"x": _x(5000)})
    np.testing.assert_array_equal(as_numpy(session.run({"x": _x(5)})["y"]), 2 * _x(5) + 1)
    session.close()
    assert not device.blocks


def test_a_shape_input_in_the_hosts_memory(tmp_path: Path, device: PretendDevice) -> None:
    """TensorRT wants the values that shapes are computed from where the processor can read them."""
    path = _save([helper.make_node("Neg", ["n"], ["y"])], tmp_path / "host.onnx", [("n", [3])], [("y", [3])])
    with pretending(device):
        session = tensorrt.load_session(write_engine(tmp_path, path, host=("n",)), EXACT)
    n = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(as_numpy(session.run({"n": n})["y"]), -n)
    session.close()


def _sum_decoder(path: Path) -> tuple[StatePort, ...]:
    """logits = the sum of all embeddings so far, [B, 1, 8]; the state is their concatenation."""
    state = ["batch", 1, "past", 8]
    nodes = [
        helper.make_node("Unsqueeze", ["inputs_embeds", "axis"], ["fresh"]),
        helper.make_node("Concat", ["past.0", "fresh"], ["present.0"], axis=2),
        helper.make_node("ReduceSum", ["present.0", "along"], ["logits"], keepdims=0),
    ]
    ports = [("inputs_embeds", ["batch", "new", 8]), ("past.0", state)]
    outputs = [("logits", ["batch", 1, 8]), ("present.0", ["batch", 1, "total", 8])]
    _save(nodes, path, ports, outputs)
    made = onnx.load(path)
    made.graph.initializer.extend(
        [onnx.numpy_helper.from_array(np.array([i]), n) for n, i in (("axis", 1), ("along", 2))]
    )
    onnx.save(made, path)
    return (StatePort("past.0", "present.0", (-1, 1, -1, 8), 2),)


def test_a_growing_state_stays_in_few_buffers_and_is_freed(tmp_path: Path, device: PretendDevice) -> None:
    states = _sum_decoder(tmp_path / "sum.onnx")
    with pretending(device):
        decoder = tensorrt.load_decoder(write_engine(tmp_path, tmp_path / "sum.onnx"), states, 512, EXACT)
    embeds = np.random.default_rng(0).normal(size=(1, 400, 8)).astype(np.float32)
    for i in range(400):
        logits = decoder.step(embeds[:, i : i + 1])
    np.testing.assert_allclose(logits, embeds.sum(1), atol=1e-4)
    # 400 × 32 bytes in two buffers of 16 KiB, and those that it outgrew: as much again.
    assert sum(b.nbytes for b in device.blocks.values()) <= 4 * 16384 + 4096
    (fork,) = decoder.fork(1)
    decoder.close()
    decoder.close()
    np.testing.assert_allclose(fork.step(embeds[:, :1]), embeds.sum(1) + embeds[:, 0], atol=1e-4)
    assert device.blocks
    fork.close()
    del fork
    assert not device.blocks


def test_a_decoder_asks_for_no_kernels_of_one_length(tmp_path: Path, device: PretendDevice) -> None:
    states = _sum_decoder(tmp_path / "sum.onnx")
    with pretending(device):
        decoder = tensorrt.load_decoder(write_engine(tmp_path, tmp_path / "sum.onnx"), states, 512, EXACT)
    config = decoder._session._it.engine.configs[-1]
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "NONE"
    assert config.cuda_graph_strategy.name == "DISABLED"
    decoder.close()


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """A bundle with pretended engines of all that it has, and a pretended GPU to run them."""
    place = Path(shutil.copytree(exported("smolvlm").bundle, tmp_path / "bundle"))
    bundle = open_bundle(place)
    (place / "engines").mkdir()
    for component in bundle.manifest.components:
        graph = bundle.file(component.file)
        write_engine(place / "engines", graph, component=component.name, graph_sha256=graph_hash(bundle, component))
    monkeypatch.setitem(registry.RUNTIMES, RTX, replace(registry.RUNTIMES[RTX], package="onnx"))
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "")
    with pretending():
        yield open_bundle(place)


def test_a_task_runs_on_the_engines_of_its_bundle(built: Bundle) -> None:
    image = picture(48, 64)
    with_engines = Model(built, runtime=RTX, options=EXACT)
    found = with_engines.answer([image], "What is it?", max_new_tokens=8)
    wanted = model("smolvlm", "onnxruntime").answer([image], "What is it?", max_new_tokens=8)
    assert set(with_engines.runtimes.values()) == {RTX}
    assert found.tokens == wanted.tokens
    with_engines.close()


def test_int8_bundles_run_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that engines are built of, with fp16 between them, do the task of the bundle."""
    monkeypatch.setitem(registry.RUNTIMES, RTX, replace(registry.RUNTIMES[RTX], package="onnx"))
    monkeypatch.setattr(registry, "why_no_gpu", lambda: "")
    place = Path(shutil.copytree(exported("smolvlm", "int8").bundle, tmp_path / "bundle"))
    bundle = open_bundle(place)
    (place / "engines").mkdir()
    for component in bundle.manifest.components:
        (tmp_path / component.name).mkdir()
        graph = halved(lower(read(bundle.file(component.file))))
        path = save(graph, tmp_path / component.name, component.name)
        digest = graph_hash(bundle, component)
        write_engine(place / "engines", path, component=component.name, graph_sha256=digest)
    with pretending():
        one = Model(open_bundle(place), runtime=RTX, options=EXACT)
        found = one.answer([picture(48, 64)], "What is it?", max_new_tokens=6)
        outputs = one._graphs[bundle.manifest.models[0].name].session("vision_encoder").outputs
        one.close()
    assert [port.dtype for port in outputs.values()] == [np.float16]
    assert len(found.tokens) == 6


def _again(built: Bundle, component: Component) -> Path:
    folder = built.path / "engines"
    graph, digest = built.file(component.file), graph_hash(built, component)
    return write_engine(folder, graph, component=component.name, graph_sha256=digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": {"gpu": ["sm86"]}}, "it is for sm86, not sm89"),
        ({"engine": {"builder": "tensorrt-rtx 1.0"}}, "it was built by tensorrt-rtx 1.0, tensorrt-rtx 1.7.9 is inst"),
        ({"graph_sha256": "1" * 64}, "it was built from another graph"),
        ({"engine": {"bytes": 7}}, "it is torn"),
    ],
)
def test_the_portable_graph_serves_until_an_engine_is_built_again(
    built: Bundle, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    image, asked, go = picture(48, 64), [], threading.Event()
    (note,) = (built.path / "engines").glob("vision*.json")
    about = json.loads(note.read_text())
    note.write_text(json.dumps(about | change | {"engine": about["engine"] | change.get("engine", {})}))

    def build(bundle: Bundle, planned: Plan, scratch: Path, tell: Tell) -> tuple[Path, Note]:
        asked.append((planned.component.name, planned.target, planned.gpus))
        assert go.wait(60)
        path = _again(built, planned.component)
        fresh = shutil.copy(path, scratch / path.name)
        return Path(fresh), Note.model_validate_json(path.with_suffix(".json").read_bytes())

    monkeypatch.setattr(engines, "build", build)
    remarks: list[str] = []
    one = Model(built, runtime=RTX, options=EXACT, remark=remarks.append)
    wanted = model("smolvlm", "onnxruntime").answer([image], "What is it?", max_new_tokens=8)
    assert one.answer([image], "What is it?", max_new_tokens=8).tokens == wanted.tokens
    assert one.runtimes["vision_encoder"] == "onnxruntime"
    assert one.runtimes["decoder"] == RTX
    (remark,) = remarks
    assert said in remark
    assert f"edgemm build {built.path} --target tensorrt-rtx" in remark
    rebuild = one.rebuilds["vision_encoder"]
    assert rebuild.state == "building"
    go.set()
    assert rebuild.wait(60)
    assert (rebuild.state, asked) == ("done", [("vision_encoder", RTX, ("sm89",))]), rebuild.error
    assert one.runtimes["vision_encoder"] == "onnxruntime"
    one.close()
    later = Model(open_bundle(built.path), runtime=RTX, options=EXACT)
    assert later.answer([image], "What is it?", max_new_tokens=8).tokens == wanted.tokens
    assert set(later.runtimes.values()) == {RTX}
    assert not later.rebuilds
    later.close()


def test_an_engine_that_the_library_refuses_is_built_again(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is whole and looks fresh, and cannot be deserialized all the same."""
    component = next(c for c in built.manifest.components if c.role == "decoder")
    digest = graph_hash(built, component)
    graph = built.path / "engines" / Path(component.file).name
    graph.write_bytes(b"no graph")
    write_engine(graph.parent, graph, component=component.name, graph_sha256=digest)

    def build(*_: Any) -> tuple[Path, Note]:
        raise BundleError("no memory")

    monkeypatch.setattr(engines, "build", build)
    one = Model(built, runtime=RTX, options=EXACT)
    found = one.answer([picture(48, 64)], "What is it?", max_new_tokens=4)
    assert (len(found.tokens), one.runtimes["decoder"]) == (4, "onnxruntime")
    assert one.rebuilds["decoder"].wait(60)
    assert str(one.rebuilds["decoder"].error) == "no memory"
    one.close()


def test_what_was_never_built_is_an_error_that_says_what_builds_it(built: Bundle) -> None:
    (note,) = (built.path / "engines").glob("vision*.json")
    note.unlink()
    said = "has no engine of vision_encoder that tensorrt-rtx can run on Pretend GPU"
    with pytest.raises(EdgemmError, match=said) as caught:
        Model(built, runtime=RTX, options=EXACT).answer([picture(48, 64)], "What is it?")
    assert caught.value.hint == f"run: edgemm build {built.path} --target tensorrt-rtx"
