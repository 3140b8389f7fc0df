"""The walk-through as a newcomer runs it, on the checkpoint of the repository."""

import re
import subprocess
import sys


def test_five_epochs_teach_a_task_that_is_new(repository):
    ran = subprocess.run(
        [sys.executable, "samples/walkthrough.py"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    dev = [float(share) for share in re.findall(r"dev accuracy ([\d.]+)%", ran.stdout)]
    assert len(dev) == 5
    assert dev[-1] >= 90
    report = {line.split()[0]: line.split()[1:] for line in ran.stdout.splitlines() if line.count("%") == 3}
    assert set(report) == {"up", "down", "left", "right", "all"}
    assert float(report["all"][2].rstrip("%")) >= 90
