"""The simulated rover does what it is told aloud; its own simulator says what it did."""

import importlib
import json
import math
import queue
import subprocess
import sys
import threading

import pytest

import edgemm
from tests.samples.robots.spoken import say, write_wave

SPOKEN = [
    ("Drive forward.", "slt", "forward"), ("Turn left.", "slt", "left"), ("Drive backward.", "slt", "backward"),
    ("Turn around.", "slt", "around"), ("Stop the rover.", "slt", "stop"), ("Go forward.", "rms", "forward"),
    ("Turn right.", "rms", "right"), ("Go back.", "rms", "backward"), ("Turn to the left.", "rms", "left"),
    ("Stop now.", "rms", "stop"),
]  # fmt: skip
MOVED = {  # metres ahead, radians to the left
    "forward": (1.0, 0.0), "backward": (-1.0, 0.0), "left": (0.0, math.pi / 2), "right": (0.0, -math.pi / 2),
    "around": (0.0, math.pi),
}  # fmt: skip


PATIENCE_S = 20.0


@pytest.fixture
def sample(repository, monkeypatch):
    """The sample's modules, by name."""
    monkeypatch.syspath_prepend(str(repository / "samples/robots/mujoco"))
    return importlib.import_module


class Person:
    """Says something, waits for what comes of it, and looks how far the rover went."""

    def __init__(self, live):
        self.live, self.lines, self.pose = live, queue.Queue(), {"x_m": 0.0, "y_m": 0.0, "heading_rad": 0.0}

    def say(self, text, voice, *keys):
        """The lines that follow, as one, until it has these keys."""
        self.live.push_audio(say(text, voice))
        line = {}
        while not line.keys() >= set(keys):
            line |= self.lines.get(timeout=PATIENCE_S)
        return line

    def moved(self, now):
        """Metres ahead and radians to the left since the last time."""
        before, self.pose = self.pose, now
        x_m, y_m, heading_rad = now["x_m"] - before["x_m"], now["y_m"] - before["y_m"], before["heading_rad"]
        ahead_m = x_m * math.cos(heading_rad) + y_m * math.sin(heading_rad)
        return ahead_m, math.remainder(now["heading_rad"] - heading_rad, math.tau)

    def obeyed(self, text, voice, command):
        """Whether the simulator says that what was said was done, and the rover came to rest."""
        if command == "stop":
            self.say("Drive forward.", "rms", "heard")
        line = self.say(text, voice, "heard")
        if line["command"] is None and command != "stop":
            return False
        while "done" not in line:
            line |= self.lines.get(timeout=PATIENCE_S)
        ahead_m, turned_rad = self.moved(line)
        if command == "stop":
            return line["done"] == "stop" and ahead_m < 0.8
        wanted_m, wanted_rad = MOVED[command]
        return abs(ahead_m - wanted_m) < 0.1 and abs(math.remainder(turned_rad - wanted_rad, math.tau)) < 0.1


def test_it_obeys_nine_of_ten_spoken_commands_and_answers(sample):
    for text, voice, _ in SPOKEN:
        say(text, voice)  # spoken now, so that a stop comes in time
    drive = sample("drive")
    obeyed, answers = {}, []

    def talk():
        try:
            answers.append(person.say("What shape is it?", "slt", "answer"))  # it looks at a ball
            for spoken in SPOKEN:
                obeyed[spoken] = person.obeyed(*spoken)
        finally:
            live.end_input()

    with edgemm.load() as model, edgemm.stream(model, tasks=("answer", "transcribe")) as live:
        person = Person(live)
        talking = threading.Thread(target=talk)
        talking.start()
        drive.drive(live, person.lines.put)
        talking.join()
    assert len(obeyed) == 10
    assert sum(obeyed.values()) >= 9, obeyed
    assert [line["answer"] for line in answers] == ["circle"]


def test_the_command_line_takes_a_recording_as_its_microphone(repository, tmp_path):
    said = write_wave(tmp_path / "said.wav", say("Turn right."))
    ran = subprocess.run(
        [sys.executable, "samples/robots/mujoco/drive.py", "--mic", str(said)],
        cwd=repository, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line.get("command", line.get("done")) for line in lines] == ["right", "right"]
    assert lines[-1]["heading_rad"] == pytest.approx(-math.pi / 2, abs=0.1)


def test_what_is_misheard_is_still_a_command(sample):
    spoken_command = sample("commands").spoken_command
    assert spoken_command("Robot, turn lift.") == "left"
    assert spoken_command("Dry forward,") == "forward"
    assert spoken_command("Please, stop!") == "stop"
    for other in ("", "What do you see?", "It is right behind you.", "My friend left the house.", "Unstoppable."):
        assert spoken_command(other) is None


def test_the_camera_sees_what_is_in_front(sample):
    rover = sample("rover").Rover()
    colours = {}
    for command in ("left", "around"):
        ahead = rover.picture()[100:110, 155:165].reshape(-1, 3).mean(axis=0)
        colours[command] = ("red", "green", "blue")[int(ahead.argmax())]
        rover.obey(command)
        rover.advance(4.0)
        assert not rover.moving
    last = rover.picture()[100:110, 155:165].reshape(-1, 3).mean(axis=0)
    rover.close()
    assert colours == {"left": "red", "around": "green"}
    assert last.argmax() == 2


def test_a_blocked_rover_gives_up(sample):
    rover = sample("rover").Rover()
    for _ in range(3):
        rover.obey("forward")
        rover.advance(4.0)
    rover.obey("forward")
    rover.advance(4.0)
    assert rover.moving
    rover.advance(6.0)
    assert not rover.moving
    assert 3.0 < rover.pose.x_m < 3.65, "the ball is not in its way"
    rover.close()
