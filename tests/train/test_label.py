"""`edgemm label`: a teacher's answers as a data set, gone on with after a kill, here or on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from edgemm.cli.app import invoke
from edgemm.errors import CheckpointError, InputError, UsageError
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.train.data import load
from edgemm.export.train.finetune import finetune
from edgemm.export.train.label import label
from edgemm.export.train.objectives import registry
from edgemm.export.train.options import TrainOptions
from tests.export.exported import checkpoint
from tests.train import data_sets

TOKENS = 6


def lines(place):
    return [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]


def unlabelled(place):
    rows = [{"audio": row["audio"], "note": i} for i, row in enumerate(lines(data_sets.tones(place)))]
    return data_sets.write_rows(place, rows)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return unlabelled(tmp_path_factory.mktemp("data") / "sounds")


@pytest.fixture(scope="module")
def said(sounds):
    """What the teacher says to every row."""
    source = find_checkpoint(checkpoint("moonshine"))
    teacher = registry.find(source, None).as_it_is(source, TrainOptions(max_new_tokens=TOKENS))
    from edgemm.export.train.data import named_splits

    return teacher.say(teacher.model, list(named_splits(sounds)["train"]))


def test_every_row_gets_what_the_teacher_says(sounds, said, tmp_path):
    report = label(checkpoint("moonshine"), sounds, tmp_path / "l", max_new_tokens=TOKENS)
    assert (report.rows, report.labelled, report.resumed, report.task) == (len(said), len(said), 0, "transcribe")
    found = lines(tmp_path / "l")
    assert [row["text"] for row in found] == said
    assert [row["note"] for row in found] == list(range(len(said)))
    assert all((tmp_path / "l" / row["audio"]).read_bytes() == (sounds / row["audio"]).read_bytes() for row in found)
    assert not (tmp_path / "l.labelling").exists()
    # A student learns from it.
    options = TrainOptions(steps=2, batch=2, max_new_tokens=TOKENS)
    assert finetune(checkpoint("whisper_en"), tmp_path / "l", tmp_path / "s", options=options).steps == 2


@pytest.mark.parametrize(
    ("name", "field"), [("vit", "label"), ("smolvlm", "answer"), ("trocr", "text"), ("yolos", "objects")]
)
def test_every_task_has_its_field(name, field, tmp_path):
    data = data_sets.colours(tmp_path / "d", n=2)
    keeps = ("image", "question") if field == "answer" else ("image",)
    data_sets.write_rows(data, [{k: row[k] for k in keeps} for row in lines(data)])
    label(checkpoint(name), data, tmp_path / "l", max_new_tokens=2)
    found = lines(tmp_path / "l")
    assert all(field in row for row in found)
    if field == "label":
        known = set(json.loads((checkpoint(name) / "config.json").read_text())["id2label"].values())
        assert {row["label"] for row in found} <= known


def test_splits_and_files_of_all_kinds_come_along(tmp_path):
    import datasets

    data = data_sets.tones(tmp_path / "d", n=4)
    whole = [(data / f"{i}.wav").read_bytes() for i in range(4)]
    rows = [{"audio": {"bytes": b, "path": "x.wav"}, "user": "a"} for b in whole]
    table = datasets.Dataset.from_list(rows)
    saved = datasets.DatasetDict({"train": table.select([0, 1, 2]), "test": table.select([3])})
    saved.save_to_disk(tmp_path / "saved")
    label(checkpoint("moonshine"), tmp_path / "saved", tmp_path / "l", max_new_tokens=2)
    found = lines(tmp_path / "l")
    assert [row["split"] for row in found] == ["train"] * 3 + ["test"]
    assert [(tmp_path / "l" / row["audio"]).read_bytes() for row in found] == whole
    splits = load(tmp_path / "l")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (3, 1)


def test_wrong_inputs(sounds, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        label(tmp_path / "nothing", sounds, tmp_path / "l")
    with pytest.raises(UsageError, match="no field of a row"):
        label(checkpoint("clip"), data_sets.colours(tmp_path / "c", n=2), tmp_path / "l")
    torn = data_sets.write_rows(tmp_path / "t", [{"audio": "absent.wav"}])
    with pytest.raises(InputError, match=r"absent\.wav"):
        label(checkpoint("moonshine"), torn, tmp_path / "l")
    assert not (tmp_path / "l").exists()
    place = tmp_path / "m.labelling"
    place.mkdir()
    (place / "run.json").write_text("{}")
    (place / "said-0.jsonl").write_text("")
    with pytest.raises(UsageError, match="unfinished labels"):
        label(checkpoint("moonshine"), sounds, tmp_path / "m")


def test_the_command_line(sounds, tmp_path, capsys):
    argv = ["label", str(checkpoint("moonshine")), "--data", str(sounds), "-o", str(tmp_path / "l")]
    assert invoke([*argv, "--max-new-tokens", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == found["labelled"] == len(lines(sounds))
    assert invoke(argv) == 1
    assert "exists" in capsys.readouterr().err
    assert invoke([*argv, "--overwrite", "--workers", "2"]) == 2


def command(data, target, *more):
    teacher = ["label", str(checkpoint("moonshine")), "--data", str(data), "-o", str(target), "--json"]
    return [sys.executable, "-m", "edgemm.cli.app", *teacher, "--max-new-tokens", str(TOKENS), "--batch", "1", *more]


def killed_after(process, place, count):
    """Kill a run as soon as so many answers are kept; how many there were."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if sum(path.read_bytes().count(b"\n") for path in place.glob("said-*")) >= count:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return sum(path.read_bytes().count(b"\n") for path in place.glob("said-*"))


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    data = unlabelled(tmp_path / "d")
    with subprocess.Popen(command(data, tmp_path / "l"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        kept = killed_after(run, tmp_path / "l.labelling", 2)
    assert not (tmp_path / "l").exists()
    again = subprocess.run(command(data, tmp_path / "l"), capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(again.stdout)
    assert found["resumed"] == kept
    assert found["labelled"] == found["rows"] - kept
    whole = label(checkpoint("moonshine"), data, tmp_path / "whole", max_new_tokens=TOKENS)
    assert lines(tmp_path / "l") == lines(whole.data)


CLUSTER = """
import json, os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
from edgemm.cli.app import invoke
try:
    code = invoke(sys.argv[1:])
finally:
    cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_label_the_same(sounds, said, tmp_path):
    pytest.importorskip("ray", reason="labelling on a cluster wants Ray")
    argv = [sys.executable, "-c", CLUSTER, *command(sounds, tmp_path / "l", "--ray", "--workers", "2")[3:]]
    environment = os.environ | {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["labelled"] == len(said)
    assert [row["text"] for row in lines(tmp_path / "l")] == said
    # A worker's own error comes through.
    torn = data_sets.write_rows(tmp_path / "t", [{"audio": "absent.wav"}] * 2)
    argv = [sys.executable, "-c", CLUSTER, *command(torn, tmp_path / "m", "--ray", "--workers", "1")[3:]]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 1
    assert "absent.wav is missing" in json.loads(done.stdout)["error"]["message"]
