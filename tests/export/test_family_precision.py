"""Every family in int8 and fp16: smaller files, components near the original, and the task measured again."""

from __future__ import annotations

import pytest

from edgemm.export.verify import TOLERANCES
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
