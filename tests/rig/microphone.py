"""A microphone that the real PortAudio opens, on a machine without a sound card.

PulseAudio reads sound from a FIFO (module-pipe-source) and ALSA's pulse plug-in shows it to
PortAudio. Needs Debian's pulseaudio pulseaudio-utils libasound2-plugins libportaudio2.
The environment must be set before PortAudio is loaded, so tests run in a process of their own.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
_ALSA = (
    'pcm.!default {{ type pulse device "{name}" '
    'hint {{ show on description "test microphone" }} }}\n'
    "ctl.!default {{ type pulse }}\n"
)


def missing() -> str | None:
    """Why there can be no microphone here, or None."""
    for program in ("pulseaudio", "pactl"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if ctypes.util.find_library("portaudio") is None:
        return "libportaudio2 is not installed"
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "libasound2-plugins is not installed"
    return None


class PipeMicrophone:
    """`with PipeMicrophone() as microphone:`; a tone plays unless other sound is fed. `played_s` is when the first
    sample of what was fed last was recorded, on `time.monotonic()`; None while that is to come."""

    def __init__(self, *, tone_hz: float = 440.0) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="edgemm-mic-")
        self.path = Path(self._directory.name)
        self._tone_hz = tone_hz
        self._sound: NDArray[np.int16] | None = None
        self.played_s: float | None = None
        self._stopping = threading.Event()
        self._feeder: threading.Thread | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to hear this microphone as its default input."""
        return {
            "PULSE_SERVER": f"unix:{self.path}/pulse.sock",
            "XDG_RUNTIME_DIR": str(self.path),
            "HOME": str(self.path),
            "ALSA_CONFIG_PATH": f"/usr/share/alsa/alsa.conf:{self.path}/asound.conf",
        }

    def __enter__(self) -> PipeMicrophone:
        (self.path / "asound.conf").write_text(_ALSA.format(name="mic"))
        socket = f"module-native-protocol-unix socket={self.path}/pulse.sock auth-anonymous=1"
        options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "-L", socket]
        self._daemon = subprocess.Popen(
            ["pulseaudio", *options],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_for_server()
        self.plug()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._feeder is not None:
            self._feeder.join(2)
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
        self._directory.cleanup()

    def plug(self) -> None:
        """The microphone is there (again)."""
        self._pactl(
            "load-module", "module-pipe-source", "source_name=mic", f"file={self.path}/mic.fifo",
            "format=s16le", f"rate={RATE_HZ}", "channels=1",
        )  # fmt: skip

    def unplug(self) -> None:
        """The microphone is gone."""
        for line in self._pactl("list", "short", "modules").splitlines():
            if "module-pipe-source" in line:
                self._pactl("unload-module", line.split()[0])

    def play(self, samples: NDArray[np.float32]) -> None:
        """Feeds this sound (16 kHz) once, then silence."""
        self.played_s = None
        self._sound = np.clip(samples * 32767, -32768, 32767).astype(np.int16)

    def _feed(self) -> None:
        piece, n, due_s = RATE_HZ // 50, 0, time.monotonic()
        fifo = -1
        while not self._stopping.is_set():
            due_s = max(due_s + 0.02, time.monotonic() - 0.1)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))
            try:
                if fifo < 0:
                    fifo = os.open(self.path / "mic.fifo", os.O_WRONLY | os.O_NONBLOCK)
                fed = len(self._sound) if self._sound is not None else 0
                os.write(fifo, self._piece(n, piece).tobytes())
                if fed and self.played_s is None:
                    self.played_s = time.monotonic() - piece / RATE_HZ
            except BlockingIOError:
                continue
            except OSError:
                fifo = self._close(fifo)
            n += piece
        self._close(fifo)

    def _close(self, fifo: int) -> int:
        if fifo >= 0:
            os.close(fifo)
        return -1

    def _piece(self, first: int, count: int) -> NDArray[np.int16]:
        if self._sound is not None:
            piece, self._sound = self._sound[:count], self._sound[count:]
            return np.pad(piece, (0, count - len(piece)))
        phase = 2 * np.pi * self._tone_hz * np.arange(first, first + count) / RATE_HZ
        return (8000 * np.sin(phase)).astype(np.int16)

    def _wait_for_server(self) -> None:
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            if (self.path / "pulse.sock").exists():
                try:
                    self._pactl("info")
                    return
                except subprocess.CalledProcessError:
                    pass
            time.sleep(0.05)
        raise TimeoutError("PulseAudio did not start")

    def _pactl(self, *arguments: str) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(["pactl", *arguments], env=environment, check=True, capture_output=True, timeout=10)
        return done.stdout.decode()
