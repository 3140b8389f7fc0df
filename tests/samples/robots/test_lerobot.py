"""The camera keeps the contract of LeRobot's cameras on edgemm's own test pattern and sample clip.

LeRobot itself cannot be installed beside edgemm (see the sample): the contract is written down here as its base class
`lerobot.cameras.Camera` and its OpenCV camera state it in 0.4.4.
"""

import importlib
import threading
import time

import numpy as np
import pytest

import edgemm

PATTERN = "test://?size=320x240&fps=20"


@pytest.fixture(scope="module")
def model():
    with edgemm.load() as model:
        yield model


@pytest.fixture
def sample(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "samples/robots/lerobot"))
    return importlib.import_module("observe")


@pytest.fixture
def two_pictures(repository, tmp_path):
    """A camera that ends after a second."""
    for name in ("0.jpg", "1.jpg"):
        (tmp_path / name).symlink_to(repository / "samples/clip/cup.jpg")
    return str(tmp_path)


def test_reads_are_fresh_and_the_newest_can_be_looked_at_again(sample, model):
    camera: sample.LeRobotCamera = sample.EdgemmCamera(model, PATTERN, tasks=("classify",))
    assert not camera.is_connected
    camera.connect()
    assert camera.is_connected
    assert (camera.width, camera.height) == (320, 240)
    pictures = [camera.read(), camera.async_read(timeout_ms=2000), camera.async_read(timeout_ms=2000)]
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((240, 320, 3), np.uint8)
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert camera.read_latest(max_age_ms=2000).shape == (240, 320, 3)
    camera.disconnect()
    assert not camera.is_connected


def test_what_is_not_there_is_an_error(sample, model, two_pictures):
    camera = sample.EdgemmCamera(model, two_pictures, tasks=("classify",))
    for read in (camera.read, camera.async_read, camera.read_latest, camera.disconnect):
        with pytest.raises(ConnectionError):
            read()
    with camera, pytest.raises(ConnectionError, match="already"):
        camera.connect()


def test_a_camera_that_gives_nothing_more_is_told(sample, model, two_pictures):
    with sample.EdgemmCamera(model, two_pictures, tasks=("classify",)) as camera:
        camera.results.wait()
        camera.async_read(timeout_ms=200)
        with pytest.raises(TimeoutError, match="200 ms"):
            camera.async_read(timeout_ms=200)
        time.sleep(0.1)
        with pytest.raises(TimeoutError, match="50 are allowed"):
            camera.read_latest(max_age_ms=50)


def test_a_disconnected_camera_leaves_no_thread(sample, model):
    before = threading.active_count()
    for _ in range(3):
        with sample.EdgemmCamera(model, PATTERN, tasks=("classify",)) as camera:
            camera.read()
    assert threading.active_count() <= before


def test_an_observation_has_pictures_state_task_and_results(sample, model, repository):
    clip = str(repository / "samples/clip/clip.mp4")
    with sample.EdgemmCamera(model, clip) as camera:
        ends_s = time.monotonic() + 20
        while not (camera.results.latest("caption") and camera.results.latest("labels")):
            assert time.monotonic() < ends_s
            time.sleep(0.05)
        state = np.arange(6, dtype=np.float32)
        observed = sample.observation({"front": camera}, state, task="wait", max_age_ms=5000)
    assert observed["observation.images.front"].shape == (360, 640, 3)
    assert observed["observation.state"] is state
    assert observed["task"] == "wait"
    assert observed["edgemm.caption"] == "an espresso"
    assert max(observed["edgemm.labels"], key=observed["edgemm.labels"].get) == "espresso"
