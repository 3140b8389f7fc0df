"""Three processes under `dora run`: a camera, edgemm, and what acts on its captions."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path


def test_the_dataflow_says_what_its_camera_shows_and_ends_with_it(repository, tmp_path):
    flow = shutil.copytree(repository / "samples/robots/dora", tmp_path / "flow")  # dora writes beside it
    for n in range(60):
        (tmp_path / f"{n:03}.jpg").symlink_to(repository / "samples/clip/cup.jpg")
    programs = Path(sys.executable).parent
    environment = {"CAMERA": str(tmp_path / "%03d.jpg"), "PATH": f"{programs}:{os.environ['PATH']}"}
    dora = subprocess.Popen(
        [programs / "dora", "run", "dataflow.yml"], cwd=flow, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = dora.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(dora.pid, signal.SIGKILL)
        raise
    assert dora.returncode == 0, out[-3000:]
    assert "act: sees an espresso" in out, out[-3000:]
    for node in ("camera", "edgemm", "act"):
        assert f"{node} finished successfully" in out
