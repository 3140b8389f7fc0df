"""An engine that is spoilt: noticed before it is loaded, and made anew in the background."""

from __future__ import annotations

import shutil
import threading

import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.errors import BundleError
from edgemm.runtimes import engines, rebuilding
from edgemm.runtimes.rebuilding import Rebuild, rebuild
from tests.export.exported import exported

GPUS = ("sm86",)
TARGET = "tensorrt-rtx"
WAIT_S = 120


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(exported("smolvlm", "int8").bundle, tmp_path / "bundle")


def component_of(bundle):
    return next(c for c in open_bundle(bundle).manifest.components if c.role == "embed_tokens")


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def changed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("spoil", "said"), [(torn, "torn"), (changed, "changed after")])
def test_a_spoilt_engine_is_made_anew(bundle, spoil, said):
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    component = component_of(bundle)

    def found():
        (engine,) = engines.engines_of(open_bundle(bundle))
        return engine

    first = rebuild(open_bundle(bundle), component, TARGET, GPUS)
    assert first.wait(WAIT_S)
    assert (first.state, first.share) == ("done", 1.0), first.error
    made = found().path
    # Replaced, not written to: the bundle may share its file.
    spoil(shutil.copy(made, made.with_suffix(".copy")))
    made.with_suffix(".copy").replace(made)
    assert said in found().stale
    second = rebuild(open_bundle(bundle), component, TARGET, GPUS)
    assert second is not first
    assert second.wait(WAIT_S)
    assert (found().path, found().stale) == (made, "")


@pytest.fixture
def slow(monkeypatch):
    """Building that waits to be let go, and what it was told to do."""
    go, calls = threading.Event(), []

    def build(bundle, planned, scratch, tell):
        calls.append(planned.component.name)
        tell("parsing", 0.25)
        go.wait(WAIT_S)
        tell("building", 0.5)
        raise BundleError("no memory")

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(rebuilding, "_RUNNING", {})
    yield go, calls
    go.set()


def started(one):
    while one.share < 0.25:
        assert not one.wait(0.01)


def test_who_asks_meanwhile_gets_the_same(bundle, slow):
    go, calls = slow
    opened, component = open_bundle(bundle), component_of(bundle)
    one, same = (rebuild(opened, component, TARGET, GPUS) for _ in range(2))
    assert one is same
    started(one)
    assert (one.state, one.what, one.share) == ("building", "parsing", 0.25)
    go.set()
    assert one.wait(WAIT_S)
    assert (one.state, str(one.error)) == ("failed", "no memory")
    assert calls == [component.name]
    assert rebuild(opened, component, TARGET, GPUS) is not one


def test_cancelled(bundle, slow):
    go, _ = slow
    one = rebuild(open_bundle(bundle), component_of(bundle), TARGET, GPUS)
    started(one)
    one.cancel()
    go.set()
    assert one.wait(WAIT_S)
    assert (one.state, one.error) == ("cancelled", None)
    assert not list((bundle / "engines").glob("*"))


def test_a_place_that_fails():
    def work(tell):
        raise OSError("gone")

    one = Rebuild(work, "decoder")
    assert one.wait(WAIT_S)
    assert "gone" in str(one.error)
