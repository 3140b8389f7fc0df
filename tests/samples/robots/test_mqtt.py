"""A lamp that is switched through a real mosquitto by what `edgemm run` sees."""

import importlib
import queue
import signal
import subprocess
import sys

import paho.mqtt.client as mqtt
import pytest

from tests.rig.broker import MOSQUITTO, Broker

CUP = "samples/clip/cup.jpg"


@pytest.fixture
def broker(tmp_path):
    """The port of a mosquitto."""
    assert MOSQUITTO, "the broker is missing; run: apt-get install mosquitto"
    broker = Broker(tmp_path)
    yield broker.port
    broker.kill()


@pytest.fixture
def commands(broker):
    """What the lamp is told."""
    told = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("home/lamp/set", qos=1)
    client.on_message = lambda c, d, message: told.put(message.payload.decode())
    client.connect("127.0.0.1", broker)
    client.loop_start()
    yield told
    client.disconnect()
    client.loop_stop()


def test_it_is_on_while_the_cup_is_seen_and_off_when_the_robot_dies(repository, broker, commands, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(200):
        (pictures / f"{n:03}.jpg").symlink_to(repository / CUP)
    lamp = subprocess.Popen(
        [sys.executable, "samples/robots/mqtt/lamp.py", "--port", str(broker), "--hold", "60"], cwd=repository
    )
    robot = subprocess.Popen(
        [sys.executable, "-m", "edgemm.cli.app", "run", "--camera", str(pictures), "--task", "classify", "--quiet",
         "--sink", f"mqtt://127.0.0.1:{broker}/robot"], cwd=repository,
    )  # fmt: skip
    try:
        assert commands.get(timeout=20) == "OFF"
        assert commands.get(timeout=40) == "ON"
        robot.send_signal(signal.SIGKILL)
        assert commands.get(timeout=10) == "OFF"
    finally:
        for child in (robot, lamp):
            child.kill()
            child.wait()


def test_it_goes_out_when_nothing_is_seen(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "samples/robots/mqtt"))
    switch = importlib.import_module("lamp").Switch("mug", score_min=0.5, hold_s=1.0)
    assert not switch.on(0.0)
    switch.take({"type": "labels", "labels": [{"label": "mug", "score": 0.4}]}, 1.0)
    assert not switch.on(1.0)
    switch.take({"type": "labels", "labels": [{"label": "cup", "score": 0.3}, {"label": "mug", "score": 0.6}]}, 2.0)
    assert switch.on(3.0)
    assert not switch.on(3.1)
