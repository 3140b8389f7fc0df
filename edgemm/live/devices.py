"""Cameras and microphones of this machine, with the spec that `--camera` and `--mic` take.

Cameras come from sysfs and three V4L2 queries (videodev2.h), so nothing is opened for capture.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.errors import EdgemmError, RuntimeUnavailable

SYSFS = Path("/sys/class/video4linux")
PORTAUDIO_HINT = "run: sudo apt install libportaudio2"
QUERY_TIMEOUT_S = 5.0

# ioctl numbers of videodev2.h: _IOR/_IOWR('V', nr, size)
_QUERYCAP = 2 << 30 | 104 << 16 | ord("V") << 8 | 0
_ENUM_FMT = 3 << 30 | 64 << 16 | ord("V") << 8 | 2
_ENUM_FRAMESIZES = 3 << 30 | 44 << 16 | ord("V") << 8 | 74
_CAP_VIDEO_CAPTURE = 0x1
_CAP_DEVICE_CAPS = 0x80000000
_BUF_VIDEO_CAPTURE = 1
_SIZE_DISCRETE = 1


@dataclass(frozen=True)
class CameraFormat:
    """A pixel format (its four characters) and the largest size in it, (width, height) px."""

    name: str
    largest_px: tuple[int, int] | None


@dataclass(frozen=True)
class Camera:
    """A camera: `spec` is what `--camera` takes; `formats` is empty where it cannot be asked. `lasting`
    is a spec that still means it when it is plugged in again (empty where udev gives none)."""

    spec: str
    name: str
    formats: tuple[CameraFormat, ...] = ()
    lasting: str = ""


@dataclass(frozen=True)
class Microphone:
    """A microphone: `spec` is what `--mic` takes (its index); its name's part is taken too."""

    spec: str
    name: str
    rate_hz: int
    channels: int
    default: bool = False


def list_cameras(sysfs: Path = SYSFS, dev: Path = Path("/dev")) -> tuple[Camera, ...]:
    """Every device that captures pictures, by number. Never raises; empty where there is none."""
    cameras = []
    for entry in sorted(sysfs.glob("video*"), key=lambda e: (len(e.name), e.name)):
        path = dev / entry.name
        try:
            name = (entry / "name").read_text().strip() or entry.name
        except OSError:
            continue
        captures, formats = _ask_camera(path)
        if captures:
            cameras.append(Camera(str(path), name, formats, lasting_link(path, dev / "v4l")))
    return tuple(cameras)


def lasting_link(device: Path, links: Path = Path("/dev/v4l")) -> str:
    """The name that udev gives a camera by its make and serial number, else by its port; empty where there is none."""
    named = (link for folder in ("by-id", "by-path") for link in sorted(links.glob(f"{folder}/*")))
    return next((str(link) for link in named if link.resolve() == device), "")


def list_microphones() -> tuple[Microphone, ...]:
    """Every input that PortAudio sees.

    Raises RuntimeUnavailable where PortAudio is missing or does not answer within 5 s.
    """
    answer: list[tuple[Microphone, ...] | Exception] = []

    def ask() -> None:
        try:
            answer.append(_ask_microphones())
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="edgemm-list-microphones", daemon=True)
    thread.start()
    thread.join(QUERY_TIMEOUT_S)
    if not answer:
        raise RuntimeUnavailable(
            f"PortAudio did not answer within {QUERY_TIMEOUT_S:.0f} s",
            hint="is the sound server stuck? try: systemctl --user restart pipewire pulseaudio",
        )
    found = answer[0]
    if isinstance(found, EdgemmError):
        raise found
    if isinstance(found, Exception):
        raise RuntimeUnavailable(f"the sound devices cannot be listed: {found}") from found
    return found


def load_sounddevice() -> Any:
    """The sounddevice module. Raises RuntimeUnavailable with the command that mends it."""
    try:
        with quiet_stderr():
            import sounddevice
    except ImportError as error:
        raise RuntimeUnavailable("sounddevice is not installed", hint="run: pip install sounddevice") from error
    except OSError as error:
        raise RuntimeUnavailable(f"the PortAudio library is not usable ({error})", hint=PORTAUDIO_HINT) from error
    return sounddevice


_stderr_lock = threading.RLock()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Sends file descriptor 2 to /dev/null for a moment: ALSA writes its warnings there itself."""
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:
            yield
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _ask_microphones() -> tuple[Microphone, ...]:
    sounddevice = load_sounddevice()
    with quiet_stderr():
        devices = sounddevice.query_devices()
    default = sounddevice.default.device[0]
    return tuple(
        Microphone(
            spec=str(number),
            name=str(device["name"]),
            rate_hz=int(device["default_samplerate"]),
            channels=int(device["max_input_channels"]),
            default=number == default,
        )
        for number, device in enumerate(devices)
        if device["max_input_channels"] > 0
    )


def _ask_camera(path: Path) -> tuple[bool, tuple[CameraFormat, ...]]:
    """Whether the device captures pictures, and its formats; a device that may not be opened is
    taken to be a camera."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return path.exists(), ()
    try:
        return _captures(fd), tuple(_formats(fd))
    except OSError:
        return False, ()
    finally:
        os.close(fd)


def _captures(fd: int) -> bool:
    buffer = bytearray(104)
    fcntl.ioctl(fd, _QUERYCAP, buffer)
    capabilities, device = struct.unpack_from("<II", buffer, 84)
    return bool((device if capabilities & _CAP_DEVICE_CAPS else capabilities) & _CAP_VIDEO_CAPTURE)


def _formats(fd: int) -> Iterator[CameraFormat]:
    for index in range(32):
        buffer = bytearray(64)
        struct.pack_into("<II", buffer, 0, index, _BUF_VIDEO_CAPTURE)
        try:
            fcntl.ioctl(fd, _ENUM_FMT, buffer)
        except OSError:
            return
        code = bytes(buffer[44:48])
        yield CameraFormat(code.decode("ascii", "replace").strip(), _largest(fd, code))


def _largest(fd: int, code: bytes) -> tuple[int, int] | None:
    largest: tuple[int, int] | None = None
    for index in range(64):
        buffer = bytearray(44)
        struct.pack_into("<I4s", buffer, 0, index, code)
        try:
            fcntl.ioctl(fd, _ENUM_FRAMESIZES, buffer)
        except OSError:
            break
        kind, *numbers = struct.unpack_from("<7I", buffer, 8)
        # a stepwise answer is min, max, step of the width, then of the height
        size = (numbers[0], numbers[1]) if kind == _SIZE_DISCRETE else (numbers[1], numbers[4])
        if largest is None or size[0] * size[1] > largest[0] * largest[1]:
            largest = size
    return largest
