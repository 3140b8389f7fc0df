"""Two processes on a Zenoh bus over loopback."""

import re
import subprocess
import sys

from tests.rig.network import free_port


def test_a_subscriber_tells_what_the_publisher_sees_and_hears(repository):
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    folder = "samples/robots/zenoh"
    subscriber = subprocess.Popen(
        [sys.executable, f"{folder}/subscribe.py", "--connect", endpoint],
        cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        publisher = subprocess.run(
            [sys.executable, f"{folder}/publish.py", "--camera", "samples/clip/clip.mp4", "--listen", endpoint,
             "--duration", "6"],
            cwd=repository, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert publisher.returncode == 0, publisher.stderr
        out, errors = subscriber.communicate(timeout=15)
    finally:
        subscriber.kill()
    assert subscriber.returncode == 0, errors
    first, *lines = out.splitlines()
    assert first.startswith("joined ")
    ages_ms = [float(line.split()[0]) for line in lines]
    assert sorted(ages_ms)[len(ages_ms) // 2] < 250
    assert re.search(r"sees espresso \(\d\d%\)", out)
    assert re.search(r"hears \w+", out)
