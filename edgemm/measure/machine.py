"""What this machine has: runtimes, devices, codecs, a display, and what stands in the way."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import edgemm
from edgemm.errors import EdgemmError
from edgemm.live.devices import Camera, Microphone, list_cameras, list_microphones

_T = TypeVar("_T")

# import name → distributions that all install it, the one to keep first
_RIVALS = {
    "cv2": (
        "opencv-python",
        "opencv-contrib-python",
        "opencv-python-headless",
        "opencv-contrib-python-headless",
    ),
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
    ),
}
_CODECS = ("h264", "hevc", "mjpeg", "aac", "opus", "libx264")
_EXPORT = ("torch", "transformers", "onnx", "onnxscript", "safetensors")


@dataclass(frozen=True)
class Problem:
    """Something that is missing or in the way. `fix` is the command that mends it, if one does."""

    what: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Present:
    """Whether something can be used, in one line."""

    available: bool
    detail: str


@dataclass(frozen=True)
class RuntimeState:
    """One runtime on this machine; `devices` are what it calls them, `missing` says why it has none."""

    name: str
    installed: bool
    version: str
    devices: tuple[str, ...]
    missing: str = ""


@dataclass(frozen=True)
class Devices:
    """Cameras and microphones; `problems` says why one kind could not be listed."""

    cameras: tuple[Camera, ...]
    microphones: tuple[Microphone, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Machine:
    """All that `edgemm doctor` tells. `codecs` are name → "decodes", "encodes" or both."""

    edgemm: str
    python: str
    platform: str
    cores: int
    memory_mb: int
    gpus: tuple[str, ...]
    runtimes: tuple[RuntimeState, ...]
    export: Present
    gui: Present
    codecs: dict[str, str]
    cameras: tuple[Camera, ...]
    microphones: tuple[Microphone, ...]
    versions: dict[str, str]
    problems: tuple[Problem, ...]


def find_devices() -> Devices:
    """Every camera and microphone. Never raises: a missing library is one of the problems."""
    cameras = list_cameras()
    try:
        return Devices(cameras, list_microphones(), ())
    except EdgemmError as error:
        return Devices(cameras, (), (Problem("microphones", error.message, error.hint),))


def examine() -> Machine:
    """Look at everything. Never raises; takes a second or two, since it imports the runtimes."""
    import psutil

    problems: list[Problem] = [*conflicts()]
    devices = find_devices()
    runtimes = _runtimes(problems)
    export = _export()
    if not export.available:
        problems.append(Problem("export", export.detail, 'run: pip install "edgemm[export]"'))
    return Machine(
        edgemm=edgemm.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=psutil.virtual_memory().total >> 20,
        gpus=_gpus(),
        runtimes=runtimes,
        export=export,
        gui=_guarded(_gui, problems, "window", Present(False, "cannot be told")),
        codecs=_guarded(_codecs, problems, "codecs", {}),
        cameras=devices.cameras,
        microphones=devices.microphones,
        versions=_versions(),
        problems=(*problems, *devices.problems),
    )


def conflicts(
    owners: dict[str, list[str]] | None = None,
) -> tuple[Problem, ...]:
    """Packages that overwrite each other's files. `owners` is import name → distributions."""
    found = importlib.metadata.packages_distributions() if owners is None else owners
    problems = []
    for name, rivals in _RIVALS.items():
        installed = [r for r in rivals if r in {_plain(d) for d in found.get(name, ())}]
        if len(installed) > 1:
            fix = f"run: pip uninstall -y {' '.join(installed)} && pip install {installed[0]}"
            detail = f"{' and '.join(installed)} overwrite each other's files"
            problems.append(Problem(name, detail, fix))
    return tuple(problems)


def _plain(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def _guarded(look: Callable[[], _T], problems: list[Problem], what: str, otherwise: _T) -> _T:
    """What `look` finds; a library that cannot even be imported is a problem, not an end."""
    try:
        return look()
    except Exception as error:
        problems.append(Problem(what, f"{type(error).__name__}: {_first_line(error)}"))
        return otherwise


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _runtimes(problems: list[Problem]) -> tuple[RuntimeState, ...]:
    from edgemm.runtimes import registry

    states = []
    for name, it in registry.RUNTIMES.items():
        devices: tuple[str, ...] = ()
        if it.installed:
            devices = _guarded(lambda name=name: _devices_of(name), problems, name, ())  # type: ignore[misc]
        missing = it.missing if it.installed else ""
        states.append(RuntimeState(name, it.installed, it.version, devices, missing))
    return tuple(states)


def _devices_of(runtime: str) -> tuple[str, ...]:
    from edgemm.runtimes import cuda, registry

    if registry.RUNTIMES[runtime].needs_gpu:
        return tuple(f"{gpu.name} ({gpu.sm})" for gpu in cuda.gpus())
    if runtime == "openvino":
        import openvino

        return tuple(openvino.Core().available_devices)
    import onnxruntime

    from edgemm.runtimes.providers import PROVIDERS

    available = onnxruntime.get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider.name in available)


def _gpus() -> tuple[str, ...]:
    """NVIDIA GPUs by their driver's own words, others by their render node."""
    names = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = info.read_text(errors="replace").splitlines()
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    board = Path("/proc/device-tree/model")
    if board.is_file():
        names.append(board.read_text(errors="replace").strip("\0 \n"))
    return tuple(names) or tuple(str(p) for p in sorted(Path("/dev/dri").glob("renderD*")))


def _export() -> Present:
    missing = [name for name in _EXPORT if importlib.util.find_spec(name) is None]
    if missing:
        return Present(False, f"not installed: {', '.join(missing)}")
    return Present(True, f"torch {_version('torch')}, transformers {_version('transformers')}")


def _gui() -> Present:
    import cv2

    display = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY")
    lines = cv2.getBuildInformation().splitlines()
    backend = next((line.split(":", 1)[1].strip() for line in lines if "GUI:" in line), "")
    if backend in ("", "NONE"):
        return Present(False, f"OpenCV {cv2.__version__} was built without windows")
    if not display:
        return Present(False, f"OpenCV has {backend}, but there is no display")
    return Present(True, f"{backend} on {display}")


def _codecs() -> dict[str, str]:
    import av

    return {name: words for name in _CODECS if (words := _codec(av, name))}


def _codec(av: Any, name: str) -> str:
    words = []
    for mode, word in (("r", "decodes"), ("w", "encodes")):
        try:
            av.codec.Codec(name, mode)
        except ValueError:
            continue
        words.append(word)
    return " and ".join(words)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _versions() -> dict[str, str]:
    """Versions of what edgemm's base needs and of what export uses, as installed."""
    names = (
        "numpy", "av", "opencv-python", "onnxruntime", "onnxruntime-gpu", "openvino", "pydantic",
        "sounddevice", "soxr", "tokenizers", "typer", "mcap", *_EXPORT,
    )  # fmt: skip
    return {name: version for name in names if (version := _version(name))}
