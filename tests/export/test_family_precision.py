"""Every family in int8 and fp16: smaller files, components near the original, the task measured again, engines."""

from __future__ import annotations

import shutil

import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.export.verify import TOLERANCES
from edgemm.measure.building import build
from tests.export.exported import FAMILIES, exported

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_every_precision(name, precision):
    made = exported(name, precision)
    parity = [p for p in made.manifest.checks.parity if p.precision == precision]
    assert {p.component for p in parity} == set(FAMILIES[name].components)
    assert min(p.cosine for p in parity) >= TOLERANCES[precision].cosine
    whole = sum(c.bytes for c in exported(name).manifest.components)
    assert sum(c.bytes for c in made.manifest.components) < whole
    assert [t.task for t in made.manifest.checks.tasks] == [t.task for t in exported(name).manifest.checks.tasks]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_builds_where_there_is_no_gpu(name, precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    bundle = shutil.copytree(exported(name, precision).bundle, tmp_path / "bundle")
    made = build(open_bundle(bundle), "tensorrt-rtx", ("sm86", "sm89", "sm120"), (), lambda _what, _share: None)
    assert made.refused == {}
    assert {n.engine.component for n in made.notes} == set(FAMILIES[name].components)
    assert len(open_bundle(bundle, full=True).manifest.engines) == len(made.notes)
