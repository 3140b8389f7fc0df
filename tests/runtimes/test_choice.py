"""Which runtime a component gets: by the device and the rule, and by a trial that is made once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgemm.bundle.files import cache_dir
from edgemm.bundle.opening import open_bundle
from edgemm.errors import BundleError, RuntimeUnavailable, UsageError
from edgemm.model import Model
from edgemm.runtimes import choice, registry
from edgemm.runtimes.base import SessionOptions
from edgemm.runtimes.choice import Question, candidates, choose, fastest
from edgemm.tasks import trial
from edgemm.tasks.graphs import Graphs
from tests.export.exported import exported

OPTIONS = SessionOptions()
QUESTION = Question("0" * 64, "decoder", "int8", "CPU", 0, True)


@pytest.fixture(autouse=True)
def _trials(monkeypatch, tmp_path):
    monkeypatch.delenv(choice.SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Trial:
    """A trial whose times are given; it counts how often it was made."""

    def __init__(self, **times):
        self.times, self.made = times, 0

    def __call__(self, names):
        self.made += 1
        return {n: self.times[n] for n in names if n in self.times}


def test_the_faster_runtime_is_taken_and_remembered():
    slow = Trial(onnxruntime=10.0, openvino=5.0)
    assert [choose("auto", QUESTION, OPTIONS, slow) for _ in range(3)] == ["openvino"] * 3
    assert slow.made == 1
    (memory,) = cache_dir("choices").glob("*.json")
    assert json.loads(memory.read_text())["median_ms"] == slow.times


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"onnxruntime": 10.0, "openvino": 9.5}, "onnxruntime"),  # within what a short trial can tell
        ({"onnxruntime": 10.0, "openvino": 30.0}, "onnxruntime"),
        ({"onnxruntime": 10.0}, "onnxruntime"),
        ({"openvino": 1.0}, "onnxruntime"),  # nothing to compare it with
        ({}, "onnxruntime"),
    ],
)
def test_the_rule_holds_unless_another_is_clearly_faster(times, expected):
    assert fastest(("onnxruntime", "openvino"), times) == expected


@pytest.mark.parametrize(
    "change",
    [{"graph_sha256": "1" * 64}, {"threads": 1}, {"exact": False}, {"precision": "fp32"}],
    ids=lambda c: next(iter(c)),
)
def test_another_question_is_asked_anew(change):
    made = Trial(onnxruntime=1.0, openvino=2.0)
    choose("auto", QUESTION, OPTIONS, made)
    choose("auto", dataclasses.replace(QUESTION, **change), OPTIONS, made)
    assert made.made == 2


@pytest.mark.parametrize("what", ["version", "processor"])
def test_another_machine_or_version_is_asked_anew(what, monkeypatch):
    made = Trial(onnxruntime=1.0, openvino=2.0)
    choose("auto", QUESTION, OPTIONS, made)
    if what == "version":
        monkeypatch.setattr(registry.Capabilities, "version", property(lambda _: "99"))
    else:
        monkeypatch.setattr(choice, "processor", lambda: "another")
    choose("auto", QUESTION, OPTIONS, made)
    assert made.made == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runtime": "tensorflow"}', '{"runtime": ["openvino"]}'])
def test_a_spoilt_memory_is_measured_again(content):
    made = Trial(onnxruntime=10.0, openvino=5.0)
    choose("auto", QUESTION, OPTIONS, made)
    (memory,) = cache_dir("choices").glob("*.json")
    memory.write_text(content)
    assert choose("auto", QUESTION, OPTIONS, made) == "openvino"
    assert made.made == 2


def test_no_place_to_remember(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose("auto", QUESTION, OPTIONS, Trial(onnxruntime=10.0, openvino=5.0)) == "openvino"


@pytest.mark.parametrize("how", ["variable", "option", "named", "lookup"])
def test_without_a_trial_the_rule_holds(how, monkeypatch):
    made, options, question = Trial(onnxruntime=10.0, openvino=5.0), OPTIONS, QUESTION
    if how == "variable":
        monkeypatch.setenv(choice.SWITCH, "1")
    if how == "option":
        options = SessionOptions(microbench=False)
    if how == "lookup":
        question = dataclasses.replace(QUESTION, role="embed_tokens")
    assert choose("onnxruntime" if how == "named" else "auto", question, options, made) == "onnxruntime"
    assert made.made == 0


def test_devices_decide_who_is_asked(monkeypatch):
    assert candidates("decoder", "CPU") == ("onnxruntime", "openvino")
    assert candidates("vision_encoder", "CPU") == ("openvino", "onnxruntime")
    assert candidates("decoder", "GPU.1") == ("openvino",)
    assert candidates("vision_encoder", "CUDA") == ("onnxruntime",)
    with pytest.raises(UsageError, match="TOASTER"):
        candidates("model", "TOASTER")
    with pytest.raises(UsageError, match="onnxruntime has no device called 'GPU'"):
        choose("onnxruntime", QUESTION, SessionOptions(device="GPU"), Trial())
    monkeypatch.setattr(registry.Capabilities, "installed", property(lambda self: self.name == "onnxruntime"))
    with pytest.raises(RuntimeUnavailable, match="needs openvino"):
        candidates("decoder", "GPU")


def test_a_bundle_is_tried(monkeypatch):
    monkeypatch.setattr(trial, "BUDGET_S", 0.05)
    told = []
    for _ in range(2):
        with Model(open_bundle(exported("smolvlm", "int8").bundle), remark=told.append) as model:
            assert set(model.runtimes.values()) <= set(registry.RUNTIMES)
    assert [remark.split(":")[0].split()[-1] for remark in told] == ["vision_encoder", "decoder"]
    records = [json.loads(p.read_text()) for p in cache_dir("choices").glob("*.json")]
    assert {r["role"] for r in records} == {"vision_encoder", "decoder"}
    for record in records:
        assert set(record["median_ms"]) == set(candidates(record["role"], "CPU"))
        assert all(ms > 0 for ms in record["median_ms"].values())


@pytest.mark.parametrize("name", ["whisper", "efficientnet"])
def test_components_of_other_families_can_be_tried(name, monkeypatch):
    monkeypatch.setattr(trial, "BUDGET_S", 0.02)
    with Model(open_bundle(exported(name).bundle)) as model:
        assert model.runtimes
    records = [json.loads(p.read_text()) for p in cache_dir("choices").glob("*.json")]
    assert records
    assert all(len(r["median_ms"]) == 2 for r in records)


def test_what_hears_sound_of_any_length_is_not_tried():
    with Model(open_bundle(exported("moonshine").bundle)) as model:
        assert set(model.runtimes.values()) == {"onnxruntime"}
    assert not list(cache_dir("choices").glob("*.json"))
    made = Trial(onnxruntime=10.0, openvino=1.0)
    assert choose("auto", QUESTION, OPTIONS, made, any_length=True) == "onnxruntime"
    assert choose("openvino", QUESTION, OPTIONS, made, any_length=True) == "openvino"
    on_graphics = dataclasses.replace(QUESTION, device="GPU")
    assert choose("auto", on_graphics, SessionOptions(device="GPU"), made, any_length=True) == "openvino"
    assert made.made == 0


def test_a_runtime_that_fails_is_left_out(monkeypatch):
    bundle = open_bundle(exported("smolvlm", "int8").bundle)
    entry = bundle.manifest.models[0]
    component = bundle.component(entry, "vision_encoder")

    def load(name):
        if name == "openvino":
            raise BundleError("no")
        return Graphs(bundle, entry, name, OPTIONS).session("vision_encoder")

    assert set(trial.compare(component, ("openvino", "onnxruntime"), load, stateful=False)) == {"onnxruntime"}
