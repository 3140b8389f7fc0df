"""Which spec is of which kind, cameras by number and by name, and what is said of the rest."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.live.capture import VideoCapture, open_video
from edgemm.live.devices import Camera, lasting_link, list_cameras
from edgemm.live.sources import v4l2
from edgemm.live.sources.base import TransientSourceError, Wish
from edgemm.live.sources.registry import KINDS, find_kind
from edgemm.live.sources.testing import paint_clock, read_clock
from tests.rig.watching import Taker, Watch, wait_until


@pytest.mark.parametrize(
    ("spec", "video", "kind"),
    [
        ("none", True, "none"),
        ("0", True, "v4l2"),
        ("/dev/video2", True, "v4l2"),
        ("rtsp://cam/1", True, "network"),
        ("rtsp://cam/1", False, "network"),
        ("http://cam/video.mjpg", True, "network"),
        ("csi://0", True, "csi"),
        ("screen://", True, "screen"),
        ("screen://:1+10,20", True, "screen"),
        ("browser://", True, "browser"),
        ("browser://", False, "browser"),
        ("test://", True, "test"),
        ("test://?hz=100", False, "test"),
        ("film.mp4", True, "file"),
        ("film.MP4", False, "file"),
        ("some/where", True, "file"),
        ("drive.mcap", True, "recording"),
        ("drive.mcap", False, "recording"),
        ("default", False, "microphone"),
        ("3", False, "microphone"),
    ],
)
def test_kind_of_a_spec(spec: str, video: bool, kind: str) -> None:
    assert find_kind(spec, video=video).name == kind


@pytest.mark.parametrize("spec", ["telepathy://", "elephant", "ftp://a:pw@b/c"])
def test_unknown_spec_lists_what_is_accepted(spec: str) -> None:
    with pytest.raises(SourceError, match="takes:") as caught:
        find_kind(spec, video=True)
    for kind in KINDS:
        assert (kind.accepts in str(caught.value)) == (kind.video is not None)
    assert "pw" not in str(caught.value)


def test_camera_0_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v4l2, "list_cameras", lambda: ())
    monkeypatch.setattr(v4l2, "device_path", lambda spec: Path("/nowhere/video0"))
    watch = Watch()
    capture = open_video("0", name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    capture.start()
    wait_until(lambda: capture.ended, 2)
    said = str(capture.error)
    assert "/nowhere/video0 is not there" in said
    assert "no camera was found (no /dev/video*)" in said
    for way_out in ("edgemm devices", "--camera test://", "rtsp://"):
        assert way_out in said


class FakeCapture:
    """Stands in for cv2.VideoCapture: a camera that gives three pictures and is unplugged."""

    opened: list[FakeCapture]

    def __init__(self, path: str, backend: int) -> None:
        self.path, self.backend, self.n = path, backend, 0
        self.settings: dict[int, float] = {}
        self.released = False
        self.opened.append(self)

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> bool:
        self.settings[key] = value
        return True

    def read(self) -> tuple[bool, Any]:
        self.n += 1
        if self.n > 3 and len(self.opened) == 1:
            return False, None
        return True, np.full((4, 6, 3), (255, 0, self.n % 200), np.uint8)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def fake_camera(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    FakeCapture.opened = []
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(v4l2, "device_path", lambda spec: device)
    return device


def test_v4l2_asks_for_size_and_rate(fake_camera: Path) -> None:
    reader = v4l2.V4l2Reader("0", Wish((1280, 720), 30.0))
    reader.open()
    picture = reader.read()
    reader.close()
    assert picture is not None
    assert picture[0][0, 0].tolist() == [1, 0, 255]
    camera = FakeCapture.opened[0]
    assert (camera.path, camera.backend) == (str(fake_camera), cv2.CAP_V4L2)
    assert camera.settings[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert camera.settings[cv2.CAP_PROP_FRAME_HEIGHT] == 720
    assert camera.settings[cv2.CAP_PROP_FPS] == 30
    assert camera.released


def test_v4l2_unplugged_and_back(fake_camera: Path) -> None:
    watch = Watch()
    capture = open_video("0", name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    with Taker(capture):
        watch.wait_for("reconnected")
    assert watch.states() == ["opening", "live", "lost", "reconnected", "ended"]
    assert len(FakeCapture.opened) == 2
    assert all(camera.released for camera in FakeCapture.opened)


def test_v4l2_compressed_pictures_where_raw_ones_do_not_fit(fake_camera: Path) -> None:
    mjpg = cv2.VideoWriter.fourcc(*"MJPG")
    for wish, asked in ((Wish(), None), (Wish(fps=15.0), None), (Wish(fps=30.0), mjpg), (Wish((640, 480)), mjpg)):
        reader = v4l2.V4l2Reader("0", wish)
        reader.open()
        reader.close()
        assert FakeCapture.opened[-1].settings.get(cv2.CAP_PROP_FOURCC) == asked


def test_v4l2_grey_pictures(fake_camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCapture, "read", lambda self: (True, np.full((4, 6), 77, np.uint8)))
    reader = v4l2.V4l2Reader("0", Wish())
    reader.open()
    picture = reader.read()
    reader.close()
    assert picture is not None
    assert picture[0].shape == (4, 6, 3)
    assert set(picture[0].ravel()) == {77}


def _plug(dev: Path, number: int, link: str | None, folder: str = "by-id") -> None:
    (dev / f"video{number}").touch()
    if link is not None:
        (dev / "v4l" / folder).mkdir(parents=True, exist_ok=True)
        (dev / "v4l" / folder / link).symlink_to(dev / f"video{number}")


def test_v4l2_names_that_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plug(tmp_path, 0, "usb-C270_1234-video-index0")
    _plug(tmp_path, 2, "pci-0000:00:14.0-usb-0:1:1.0-video-index0", "by-path")
    _plug(tmp_path, 4, None)
    _plug(tmp_path, 0, "pci-0000:00:14.0-usb-0:2:1.0-video-index0", "by-path")
    links = tmp_path / "v4l"
    by_id, by_path = (
        f"{links}/by-id/usb-C270_1234-video-index0",
        f"{links}/by-path/pci-0000:00:14.0-usb-0:1:1.0-video-index0",
    )
    assert [lasting_link(tmp_path / f"video{number}", links) for number in (0, 2, 4)] == [by_id, by_path, ""]
    monkeypatch.setattr(v4l2, "lasting_link", lambda device: lasting_link(tmp_path / device.name, links))
    assert [v4l2.lasting_path(spec) for spec in ("0", "/dev/video0", "2")] == [by_id, by_id, by_path]
    for spec in ("4", "/dev/video4", "c270", by_id):
        assert v4l2.lasting_path(spec) == spec


def test_v4l2_comes_back_under_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replugged, the camera is video1, and video0 is another one: the link is followed."""
    FakeCapture.opened = []
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    _plug(tmp_path, 0, "usb-C270-video-index0")
    link = tmp_path / "v4l" / "by-id" / "usb-C270-video-index0"
    monkeypatch.setattr(v4l2, "device_path", lambda spec: tmp_path / "video0" if spec == "0" else Path(spec))
    kind = replace(find_kind("0", video=True), lasting=lambda spec: lasting_link(tmp_path / "video0", tmp_path / "v4l"))
    watch = Watch()
    capture = VideoCapture(
        "0",
        name="camera",
        kind=kind,
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
    )

    def read(self: FakeCapture) -> tuple[bool, Any]:
        self.n += 1
        if self.n == 4 and len(self.opened) == 1:
            link.unlink()
            (tmp_path / "video1").touch()
            link.symlink_to(tmp_path / "video1")
            return False, None
        return True, np.zeros((4, 6, 3), np.uint8)

    monkeypatch.setattr(FakeCapture, "read", read)
    with Taker(capture):
        watch.wait_for("reconnected")
    assert [Path(camera.path).name for camera in FakeCapture.opened] == ["video0", "video1"]


def test_v4l2_busy(fake_camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCapture, "isOpened", lambda self: False)
    with pytest.raises(TransientSourceError, match="cannot be opened"):
        v4l2.V4l2Reader("0", Wish()).open()


def test_camera_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = (Camera("/dev/video0", "HD Webcam C270"), Camera("/dev/video2", "Integrated Camera"))
    monkeypatch.setattr(v4l2, "list_cameras", lambda: cameras)
    assert v4l2.device_path("c270") == Path("/dev/video0")
    assert v4l2.device_path("7") == Path("/dev/video7")
    assert find_kind("integrated", video=True).name == "v4l2"
    with pytest.raises(SourceError, match="fits several cameras"):
        v4l2.device_path("cam")


def test_cameras_are_listed_in_order(tmp_path: Path) -> None:
    for number in (10, 2):
        entry = tmp_path / "sys" / f"video{number}"
        entry.mkdir(parents=True)
        (entry / "name").write_text(f"Camera {number}\n")
    dev = tmp_path / "dev"
    dev.mkdir()
    for number in (10, 2):
        (dev / f"video{number}").symlink_to("/nonexistent")
    assert list_cameras(tmp_path / "sys", dev) == ()
    for number in (10, 2):
        (dev / f"video{number}").unlink()
        (dev / f"video{number}").touch()
    # a plain file answers no V4L2 query: it is no camera
    assert list_cameras(tmp_path / "sys", dev) == ()


def test_cameras_by_their_capabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of the kernel are played: a camera and the metadata node beside it."""
    import struct

    from edgemm.live import devices

    def ioctl(fd: int, request: int, buffer: bytearray) -> int:
        number = request & 0xFF
        node = Path(f"/proc/self/fd/{fd}").resolve().name
        if number == 0:
            struct.pack_into("<II", buffer, 84, 0x84A00001, 0x1 if node == "video0" else 0x800000)
        elif number == 2 and struct.unpack_from("<I", buffer)[0] == 0:
            buffer[44:48] = b"MJPG"
        elif number == 74 and struct.unpack_from("<I", buffer)[0] < 2:
            index = struct.unpack_from("<I", buffer)[0]
            struct.pack_into("<III", buffer, 8, 1, *((640, 480), (1920, 1080))[index])
        else:
            raise OSError(22, "Invalid argument")
        return 0

    monkeypatch.setattr(devices, "fcntl", SimpleNamespace(ioctl=ioctl))
    for name in ("video0", "video1"):
        (tmp_path / "sys" / name).mkdir(parents=True)
        (tmp_path / "sys" / name / "name").write_text("HD Webcam\n")
        (tmp_path / name).touch()
    _plug(tmp_path, 0, "usb-HD-video-index0")
    (camera,) = list_cameras(tmp_path / "sys", tmp_path)
    assert camera.spec == str(tmp_path / "video0")
    assert camera.lasting == str(tmp_path / "v4l/by-id/usb-HD-video-index0")
    assert [(f.name, f.largest_px) for f in camera.formats] == [("MJPG", (1920, 1080))]


@pytest.mark.parametrize("size_px", [(640, 480), (320, 240), (33, 17)])
@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF, 0x12345678, 123_456_789])
def test_painted_clock(size_px: tuple[int, int], value: int) -> None:
    image = np.full((size_px[1], size_px[0], 3), 128, np.uint8)
    paint_clock(image, value)
    assert read_clock(image) == value
    if size_px[0] >= 320:
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        assert read_clock(np.asarray(cv2.imdecode(jpeg, 1))) == value


@pytest.mark.parametrize("spec", ["test://?size=big", "test://?fps=0", "test://?sise=64x64"])
def test_a_wrong_test_pattern_is_refused(spec: str) -> None:
    watch = Watch()
    capture = open_video(spec, name="camera", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    capture.start()
    wait_until(lambda: capture.ended)
    assert "is not a test pattern" in str(capture.error)


def test_nothing_heavy_is_imported() -> None:
    import subprocess

    code = (
        "import sys, edgemm.live.capture, edgemm.live.audio_capture, edgemm.live.recording;"
        "bad = {'cv2', 'av', 'soxr', 'sounddevice', 'mcap', 'torch'} & set(sys.modules);"
        "assert not bad, bad"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
