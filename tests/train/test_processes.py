"""Several processes train one model: on one machine, and as two machines by the sample's launch file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgemm.cli.app import invoke
from tests.export.exported import checkpoint
from tests.rig.network import free_port
from tests.train import data_sets

LAUNCH = Path(__file__).resolve().parents[2] / "samples" / "launch" / "hosts.yaml"
ROWS, BATCH = 12, 2
STEPS = -(-(ROWS - 2) // (2 * BATCH))  # of an epoch: two rows are held out, two processes share the others
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return data_sets.colours(tmp_path_factory.mktemp("data") / "colours", n=ROWS)


def verb(pictures, target):
    return [
        "finetune",
        checkpoint("vit"),
        "--data",
        pictures,
        "-o",
        target,
        "--epochs",
        "1",
        "--batch",
        BATCH,
        "--json",
    ]


def start(*command):
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, env=QUIET)


def told(*processes):
    """What each process printed. All of them ended well."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        found.append(out)
    return found


def test_two_processes_train_one_model(pictures, tmp_path):
    port = ("--nproc_per_node=2", f"--master_port={free_port()}")
    run = start(
        sys.executable, "-m", "torch.distributed.run", *port, "-m", "edgemm.cli.app", *verb(pictures, tmp_path / "two")
    )
    # One of them speaks, and each has seen half of the rows.
    assert json.loads(told(run)[0])["steps"] == STEPS
    assert (tmp_path / "two" / "model.safetensors").is_file()
    assert not (tmp_path / "two.training").exists()


@pytest.mark.slow
def test_two_machines_by_the_launch_file(pictures, tmp_path):
    settings = tmp_path / "hosts.yaml"
    settings.write_text(LAUNCH.read_text().replace("use_cpu: false", "use_cpu: true"))
    tool, port = Path(sys.executable).with_name("accelerate"), free_port()
    common = ("--config_file", settings, "--main_process_port", str(port), "-m", "edgemm.cli.app")
    hosts = [
        start(tool, "launch", "--machine_rank", rank, *common, *verb(pictures, tmp_path / "two")) for rank in range(2)
    ]
    first, second = told(*hosts)
    assert json.loads(first)["steps"] == STEPS
    assert second == ""
    assert (tmp_path / "two" / "model.safetensors").is_file()


def test_weights_spread_over_processes_are_refused(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert invoke(list(map(str, verb(pictures, tmp_path / "x")))) == 2
    assert "FSDP" in capsys.readouterr().err
