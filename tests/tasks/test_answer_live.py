"""A typed question is answered over the live picture."""

import json
import subprocess
import sys

from tests.export.exported import exported


def test_ask_is_answered_live(repository):
    clip = str(repository / "samples/clip/clip.mp4")
    command = [sys.executable, "-m", "edgemm.cli.app", "run", str(exported("smolvlm").bundle), "--camera", clip]
    options = ["--mic", "none", "--task", "answer", "--ask", "What?", "--max-new-tokens", "8", "--duration", "6s"]
    run = subprocess.run(
        [*command, *options, "--json", "--no-show"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    events = [json.loads(line) for line in run.stdout.splitlines()]
    (answer,) = [e for e in events if e["type"] == "answer"]
    assert answer["question"] == "What?"
    assert answer["frames"]
    deltas = "".join(e["text"] for e in events if e["type"] == "answer_delta")
    assert deltas.strip() == answer["text"].strip()
    assert events[-1]["processed"] >= 1
