"""The ctypes of the CUDA driver, against a library of the same symbols that works on the host's memory.

`driver.c` compiles against CUDA's own cuda.h too (12.8, -DREAL_HEADER): its signatures are the driver's.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemm.errors import RuntimeUnavailable
from edgemm.measure.machine import examine
from edgemm.runtimes import cuda
from edgemm.runtimes.cuda import CudaDevice, DeviceError, gpus, why_no_gpu

SOURCE = Path(__file__).with_name("driver.c")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to build a driver with")


def _build(folder: Path, *options: str, source: str | None = None) -> str:
    """A driver's library; each has a name of its own, since a process loads a name once."""
    path = folder / f"libcuda-{len(list(folder.iterdir()))}.so"
    given = ["-x", "c", "-"] if source is not None else [str(SOURCE)]
    command = ["gcc", "-shared", "-fPIC", *options, "-o", str(path), *given]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return str(path)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    cuda._library.cache_clear()
    yield
    cuda._library.cache_clear()


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    monkeypatch.setattr(cuda, "LIBRARY", _build(tmp_path))
    made = CudaDevice()
    made.use()
    return made


def test_what_the_gpu_says_of_itself(device: CudaDevice) -> None:
    assert (device.name, device.sm, device.driver) == ("Host GPU", "sm89", 12080)
    assert [gpu.name for gpu in gpus()] == ["Host GPU"]
    assert why_no_gpu() == ""
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA GPU 1 here, but 1"):
        CudaDevice(1)


def test_doctor_lists_it(device: CudaDevice) -> None:
    states = {state.name: state for state in examine().runtimes}
    if states["tensorrt-rtx"].installed:
        assert states["tensorrt-rtx"].devices == ("Host GPU (sm89)",)
        assert states["tensorrt-rtx"].missing == ""


def test_numbers_go_there_and_back(device: CudaDevice) -> None:
    stream = device.stream()
    given = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    first, second = device.allocate(given.nbytes), device.allocate(given.nbytes)
    device.upload(first, given, stream)
    device.copy(second, first, given.nbytes, stream)
    found = np.empty_like(given)
    device.download(found, second, stream)
    polls = 0
    while not device.done(stream):
        polls += 1
    assert polls == 2
    np.testing.assert_array_equal(found, given)
    device.free(first)
    device.free(second)
    device.drop_stream(stream)


def test_what_was_captured_is_done_when_it_is_launched(device: CudaDevice) -> None:
    stream, given = device.stream(), np.arange(4, dtype=np.int64)
    address = device.allocate(given.nbytes)
    found = np.zeros_like(given)
    device.begin_capture(stream)
    device.upload(address, given, stream)
    device.download(found, address, stream)
    graph = device.end_capture(stream)
    assert not found.any()
    for factor in (1, 10):
        given *= factor
        device.launch(graph, stream)
        device.wait(stream)
        np.testing.assert_array_equal(found, given)
    device.drop_graph(graph)


def test_a_refusal_names_the_call_and_the_reason(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match="cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocate(1 << 30)
    with pytest.raises(DeviceError, match="cuStreamQuery failed: error 1"):
        device.done(12345)


def test_every_thread_chooses_its_device(device: CudaDevice) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            device.allocate(8)
        except DeviceError as error:
            said.append(str(error))
        device.use()
        device.free(device.allocate(8))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert said == ["cuMemAlloc_v2 failed: error 201"]


BROKEN = {
    "no GPU": (("-DSTART=100",), None, "the NVIDIA driver finds no GPU"),
    "a driver that does not match its kernel module": (("-DSTART=803",), None, "does not start: error 803"),
    "a driver from before graphs": (
        (),
        "int cuInit(unsigned f) { return 0; }",
        "too old: it has no cuDriverGetVersion",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_driver_that_cannot_be_used(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, source, said = BROKEN[case]
    monkeypatch.setattr(cuda, "LIBRARY", _build(tmp_path, *options, source=source))
    assert said in why_no_gpu()
    assert gpus() == ()
    with pytest.raises(RuntimeUnavailable, match="no GPU to run on") as caught:
        CudaDevice()
    assert "--runtime onnxruntime" in caught.value.hint


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-nowhere.so.1")
    assert "no NVIDIA driver is installed" in why_no_gpu()
    assert gpus() == ()
