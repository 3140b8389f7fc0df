"""`edgemm run` on a real RTSP camera and a real PortAudio microphone, at once."""

import json
import os
import subprocess
import sys
import time

import pytest

from edgemm.processing.audio import load_audio, to_mono_16k
from tests.rig import microphone, rtsp_camera
from tests.rig.microphone import PipeMicrophone
from tests.rig.rtsp_camera import RtspCamera

REASON = rtsp_camera.missing() or microphone.missing()
SPEECH_S = (0.4, 4.3)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_sees_a_camera_and_hears_a_microphone(repository):
    sound = to_mono_16k(*load_audio(repository / "samples/clip/clip.mp4"))
    sentence = sound[int(SPEECH_S[0] * 16_000) : int(SPEECH_S[1] * 16_000)]
    with RtspCamera() as camera, PipeMicrophone(tone_hz=0.0) as mic:
        command = [sys.executable, "-m", "edgemm.cli.app", "run", "--camera", camera.url, "--mic", "default"]
        run = subprocess.Popen(
            [*command, "--duration", "12s", "--json", "--no-show"],
            env=os.environ | mic.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(5.0)
        mic.play(sentence)
        out, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    events = [json.loads(line) for line in out.splitlines()]
    summary = events[-1]
    assert summary["type"] == "summary"
    assert summary["captured"] >= 100
    assert summary["captured"] == summary["processed"] + sum(summary["dropped"].values()) + summary["in_flight"]
    assert any(e["type"] == "labels" for e in events)
    said = " ".join(e["text"] for e in events if e["type"] == "transcript" and e["final"]).lower()
    assert "amiable" in said, said
