"""Every family in int8 and fp16: smaller files, components near the original, the task measured again, engines."""

from __future__ import annotations

import shutil

import pytest

from edgemm.bundle.opening import open_bundle
from edgemm.export.verify import TOLERANCES
from edgemm.measure.building import build
from tests.export.exported import FAMILIES, exported

pytestmark = pytest.mark.slow

DECODE = tuple(name for name, tiny in FAMILIES.items() if "decoder" in tiny.components)
WAYS = [(name, precision) for precision in ("int8", "fp16") for name in FAMILIES] + [(name, "int4") for name in DECODE]


@pytest.mark.parametrize(("name", "precision"), WAYS)
def test_every_family_takes_every_precision(name, precision):
    made = exported(name, precision)
    parity = [p for p in made.manifest.checks.parity if p.precision != "fp32"]
    # int4 is for decoders.
    others = {c: "int8" if precision == "int4" and c != "decoder" else precision for c in FAMILIES[name].components}
    assert {p.component: p.precision for p in parity} == others
    assert {c.name: c.precision for c in made.manifest.components} == others
    assert all(p.cosine >= TOLERANCES[p.precision].cosine for p in parity)
    whole = sum(c.bytes for c in exported(name).manifest.components)
    assert sum(c.bytes for c in made.manifest.components) < whole
    assert [t.task for t in made.manifest.checks.tasks] == [t.task for t in exported(name).manifest.checks.tasks]


@pytest.mark.parametrize(("name", "precision"), WAYS)
def test_every_family_builds_where_there_is_no_gpu(name, precision, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this machine")
    bundle = shutil.copytree(exported(name, precision).bundle, tmp_path / "bundle")
    made = build(open_bundle(bundle), "tensorrt-rtx", ("sm86", "sm89", "sm120"), (), lambda _what, _share: None)
    assert made.refused == {}
    assert {n.engine.component for n in made.notes} == set(FAMILIES[name].components)
    assert len(open_bundle(bundle, full=True).manifest.engines) == len(made.notes)
