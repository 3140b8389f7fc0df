"""fp16 and int8 of every family: smaller, checked, and alike on both runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.export.verify import TOLERANCES
from tests.export.exported import RUNTIMES, exported, model, picture, sound

# The cheap tier has one of every kind of graph but the encoder–decoders: the default bundle is one in int8.
SPEECH = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("moonshine", "whisper"))
NAMES = (*SPEECH, "smolvlm", "efficientnet")
# Of the weight bytes in fp32. Tiny graphs are half headers and norms.
# Speech keeps its convolutions in fp16, and in a tiny network they are most of it.
AT_MOST = {"fp16": 0.56, "int8": 0.42}
SPEECH_INT8_AT_MOST = 0.7
PROBABILITY = {"fp16": 0.02, "int8": 0.4}


def weight_bytes(report):
    return sum(e.bytes for name, e in report.manifest.files.items() if name.endswith(".data"))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_is_smaller_and_checked(name, precision):
    report, whole = exported(name, precision), exported(name)
    speech = precision == "int8" and name in SPEECH
    at_most = SPEECH_INT8_AT_MOST if speech else AT_MOST[precision]
    assert weight_bytes(report) <= at_most * weight_bytes(whole)
    assert report.bytes < whole.bytes
    manifest = report.manifest
    assert {c.precision for c in manifest.components} == {precision}
    checks = [p for p in manifest.checks.parity if p.precision == precision]
    assert {p.component for p in checks} == {c.name for c in manifest.components}
    assert min(p.cosine for p in checks) >= TOLERANCES[precision].cosine
    (task,) = manifest.checks.tasks
    assert task.n > 0
    assert not list(report.bundle.glob(".*")), "the fp32 stage is gone"


@pytest.mark.parametrize("name", ["smolvlm", "efficientnet"])
def test_int8_says_what_it_was_calibrated_on(name):
    manifest = exported(name, "int8").manifest
    calibrated = manifest.quantization.calibration
    computed = {c.name for c in manifest.components if c.int8_operators}
    assert computed
    assert computed <= set(calibrated)
    assert all(calibrated[c].n > 0 and calibrated[c].sha256 for c in computed)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_classes_are_alike(precision, runtime):
    image = picture(90, 120)
    found = [model("efficientnet", runtime, p).task("classify").probabilities(image) for p in ("fp32", precision)]
    assert np.abs(found[0] - found[1]).max() <= PROBABILITY[precision]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_answers_are_made(precision, runtime):
    one = model("smolvlm", runtime, precision)
    whole = model("smolvlm", runtime)
    logits = [m.task("answer").logits([picture(40, 70)], "What?") for m in (whole, one)]
    a, b = (x.astype(np.float64) for x in logits)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= TOLERANCES[precision].cosine
    assert len(one.answer(picture(40, 70), "What?", max_new_tokens=16).tokens) > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", SPEECH)
def test_speech_is_heard(name, precision, runtime):
    assert model(name, runtime, precision).transcribe(sound(2.0)).tokens
