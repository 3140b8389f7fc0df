"""What of the deployment samples can be checked without installing them."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def unit(repository, tmp_path):
    """The systemd unit, with edgemm where it is installed here."""
    text = (repository / "samples/deploy/edgemm.service").read_text()
    assert text.count("=/opt/edgemm/bin/") == 1
    path = tmp_path / "edgemm.service"
    path.write_text(text.replace("=/opt/edgemm/bin/", f"={PROGRAMS}/"))
    return path


def test_systemd_has_nothing_against_the_unit(unit):
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert unit.name not in ran.stderr


def test_its_command_runs_until_it_is_told_to_stop(unit, tmp_path):
    (command,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    arguments = shlex.split(command.replace("$EDGEMM_OPTIONS", "--camera test:// --task classify --json"))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert any('"type": "labels"' in line for line in child.stdout)
            child.send_signal(signal.SIGTERM)
            assert '"type": "summary"' in child.stdout.read()
            child.wait(timeout=10)
        finally:
            child.kill()
    assert f"SuccessExitStatus={child.returncode}\n" in unit.read_text()


def test_images_copy_what_they_need_and_debian_has_what_they_install(repository):
    for name in ("Dockerfile.x86", "Dockerfile.jetson"):
        text = (repository / "samples/deploy" / name).read_text()
        for copied in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
            assert all((repository / path).exists() for path in copied.split()), name
    text = (repository / "samples/deploy/Dockerfile.x86").read_text()
    wanted = {word for line in re.findall(r"--no-install-recommends ([^\\&\n]*)", text) for word in line.split()}
    assert {"python3-venv", "libportaudio2"} <= wanted
    known = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, text=True, check=True).stdout.split()
    assert wanted <= set(known)
