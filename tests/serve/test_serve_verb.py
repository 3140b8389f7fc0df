"""`edgemm serve` as a program: it says where it answers, and Ctrl-C ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request

from tests.export.exported import exported


def test_it_serves_until_ctrl_c() -> None:
    command = [
        sys.executable,
        "-m",
        "edgemm.cli.app",
        "serve",
        str(exported("moonshine").bundle),
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while not said.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "it ended"
            said += line
        document = json.loads(said)
        with urllib.request.urlopen(f"{document['url']}/models") as answer:
            models = json.load(answer)
        assert models["data"][0]["tasks"] == document["tasks"]
        process.send_signal(signal.SIGINT)
        began_s = time.monotonic()
        assert process.wait(10) == 130
        assert time.monotonic() - began_s < 3
