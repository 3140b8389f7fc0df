"""The overlay window on a virtual screen: it appears, and closing the run closes it."""

import os
import shutil
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed (apt-get install xvfb)")

SCREEN_PX = (800, 600)


@pytest.fixture
def display(tmp_path):
    """A virtual screen whose picture lies in a file."""
    number = ":97"
    size = f"{SCREEN_PX[0]}x{SCREEN_PX[1]}x24"
    command = ["Xvfb", number, "-screen", "0", size, "-fbdir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    assert server.poll() is None
    yield number, tmp_path / "Xvfb_screen0"
    server.terminate()
    server.wait()


def test_window_shows_the_camera(display, repository):
    number, screen = display
    clip = str(repository / "samples/clip/clip.mp4")
    blank = len(set(screen.read_bytes()[4096:]))
    run = subprocess.Popen(
        [sys.executable, "-m", "edgemm.cli.app", "run", "--camera", clip, "--mic", "none", "--duration", "6s"],
        env=os.environ | {"DISPLAY": number},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shown = 0
    while run.poll() is None:
        shown = max(shown, len(set(screen.read_bytes()[4096:])))
        time.sleep(0.2)
    assert run.returncode == 0
    assert shown > blank + 50, "the screen stayed empty"
