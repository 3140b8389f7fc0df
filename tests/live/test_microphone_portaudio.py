"""A real PortAudio microphone: sound arrives, an unplugged one is noticed and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.rig import microphone
from tests.rig.listener import ROOT, Listener
from tests.rig.microphone import PipeMicrophone
from tests.rig.watching import wait_until

GONE_NOTICED_S = 0.5
TOLERANCE_S = 0.15

_LIST = (
    "import json, dataclasses; from edgemm.live.devices import list_microphones;"
    "print(json.dumps([dataclasses.asdict(m) for m in list_microphones()]))"
)
_WITHOUT_PORTAUDIO = (
    "import ctypes.util; ctypes.util.find_library = lambda name: None;"
    "from edgemm.live.devices import list_microphones; list_microphones()"
)


@pytest.fixture(scope="module")
def mic() -> Iterator[PipeMicrophone]:
    reason = microphone.missing()
    if reason is not None:
        pytest.skip(reason)
    with PipeMicrophone() as pipe:
        yield pipe


def _python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_sound_arrives_in_time(mic: PipeMicrophone) -> None:
    with Listener(mic.environment, "default") as heard:
        wait_until(lambda: len(heard.of("block")) >= 60)
        assert heard.finish() == 0
    blocks = np.array(heard.of("block"))
    assert (blocks[:, 2] == 0).all()
    assert np.median(blocks[10:, 3]) == pytest.approx(8000 / 32768, abs=0.02)
    assert np.abs(np.diff(blocks[:, 1]) - 0.032).max() < 0.005
    age_s = blocks[:, 4] - (blocks[:, 1] + 0.032)
    assert np.percentile(age_s, 95) < 0.2
    assert heard.of("end")[0]["stop_s"] < 0.6
    assert heard.stderr == ""


def test_unplugged_then_plugged(mic: PipeMicrophone) -> None:
    with Listener(mic.environment, "default") as heard:
        wait_until(lambda: len(heard.of("block")) >= 20)
        mic.unplug()
        gone_s = time.monotonic()
        wait_until(lambda: any(state == "lost" for _, state, _ in heard.of("status")))
        lost_s = next(t_s for t_s, state, _ in heard.of("status") if state == "lost")
        assert lost_s - gone_s <= GONE_NOTICED_S + TOLERANCE_S
        time.sleep(0.7)
        before = len(heard.of("block"))
        mic.plug()
        back_s = time.monotonic()
        wait_until(lambda: len(heard.of("block")) > before + 10)
        heard.finish()
    block = heard.of("block")[before]
    assert block[0] - back_s < 2.0
    assert 0.5 < block[2] < 5.0
    gap = heard.of("block")[before][1] - heard.of("block")[before - 1][1] - 0.032
    assert block[2] == pytest.approx(gap, abs=1e-3)
    assert "reconnected" in [state for _, state, _ in heard.of("status")]
    end = heard.of("end")[0]
    assert (end["gaps"], end["reconnects"]) == (1, 1)


def test_by_a_part_of_its_name_and_by_index(mic: PipeMicrophone) -> None:
    listed = _python(_LIST, mic.environment)
    assert listed.returncode == 0, listed.stderr
    assert listed.stderr == ""
    microphones = json.loads(listed.stdout)
    assert [m["name"] for m in microphones if m["default"]] == ["default"]
    for spec in (microphones[0]["spec"], microphones[0]["name"][:5].upper()):
        with Listener(mic.environment, spec) as heard:
            wait_until(lambda heard=heard: len(heard.of("block")) > 3)  # type: ignore[misc]


def test_a_microphone_that_is_not_there(mic: PipeMicrophone) -> None:
    with Listener(mic.environment, "77") as heard:
        wait_until(lambda: bool(heard.of("end")))
        assert heard.finish() == 0
    error = heard.of("end")[0]["error"]
    assert "microphone 77: not there" in error
    assert "microphones found: 0 (pulse), 1 (default)" in error
    assert "edgemm devices" in error


def test_without_portaudio_it_says_what_to_install() -> None:
    done = _python(_WITHOUT_PORTAUDIO, {})
    assert "RuntimeUnavailable" in done.stderr
    assert "sudo apt install libportaudio2" in done.stderr
