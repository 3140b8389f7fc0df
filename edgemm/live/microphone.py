"""A microphone through PortAudio (sounddevice), at the device's own rate.

PortAudio does not say when a microphone is unplugged: callbacks just stop. So the finished
callback, `stream.active` and the age of the last callback are watched here, and closing is left
to a helper thread, because it can hang on a device that is gone.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from typing import Any

import numpy as np

from edgemm.errors import RuntimeUnavailable, SourceError
from edgemm.live.devices import load_sounddevice, quiet_stderr
from edgemm.live.sources.base import Sound, TransientSourceError

PIECE_S = 0.02
SILENT_S = 0.4
QUEUE_PIECES = 500
CLOSE_TIMEOUT_S = 0.4
OTHER_RATES_HZ = (48_000, 44_100, 32_000, 16_000)

_open_lock = threading.Lock()
_open_streams = 0
_scanned = False
_closing: set[threading.Thread] = set()
_exiting = threading.Event()


def is_microphone(spec: str) -> bool:
    """An index, `default`, or a part of the name of an input that is there."""
    if spec == "default" or spec.isdecimal():
        return True
    try:
        return bool(_matching(load_sounddevice(), spec))
    except RuntimeUnavailable:
        return False


class MicrophoneReader:
    """Reads one input. The callback only copies into a bounded queue and never blocks."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._pieces: queue.Queue[tuple[float, Any, bool]] = queue.Queue(QUEUE_PIECES)
        self._finished = threading.Event()
        self._dropped = False
        self._rate_hz = 0
        self._heard_s = 0.0
        self._stream: Any = None

    def open(self) -> None:
        """Raises RuntimeUnavailable without PortAudio, TransientSourceError without a device."""
        global _open_streams
        sounddevice = load_sounddevice()
        with _open_lock, quiet_stderr():
            _scan(sounddevice)
            device = _find(sounddevice, self._spec)
            self._stream = self._open_stream(sounddevice, device)
            _open_streams += 1
        self._heard_s = time.monotonic()

    def _open_stream(self, sounddevice: Any, device: dict[str, Any]) -> Any:
        """Opens at the native rate, or at the first usual rate that the device takes."""
        native_hz = int(device["default_samplerate"])
        channels = min(int(device["max_input_channels"]), 2)
        why: Exception | None = None
        for rate_hz in (native_hz, *(rate for rate in OTHER_RATES_HZ if rate != native_hz)):
            stream = None
            try:
                stream = sounddevice.InputStream(
                    device=device["index"],
                    samplerate=rate_hz,
                    channels=channels,
                    dtype="float32",
                    blocksize=int(rate_hz * PIECE_S),
                    latency="low",
                    callback=self._hear,
                    finished_callback=self._finished.set,
                )
                self._rate_hz = rate_hz
                stream.start()
                return stream
            except sounddevice.PortAudioError as error:
                why = error
                if stream is not None:
                    stream.close(ignore_errors=True)
        raise TransientSourceError(
            f"microphone {device['name']!r} cannot be opened: {why}",
            hint="another program may hold it; run: edgemm devices",
        )

    def _hear(self, data: Any, frames: int, times: Any, status: Any) -> None:
        now_s = time.monotonic()
        # the driver's own account of its delay, where it is one
        delay_s = times.currentTime - times.inputBufferAdcTime
        if not 0.0 <= delay_s <= 0.5:
            delay_s = frames / self._rate_hz
        lost = self._dropped or bool(status.input_overflow)
        try:
            self._pieces.put_nowait((now_s - delay_s, data.copy(), lost))
            self._dropped = False
        except queue.Full:
            self._dropped = True

    def read(self) -> Sound | None:
        """The next piece. Raises TransientSourceError when the microphone is gone."""
        while True:
            try:
                t_monotonic_s, data, lost = self._pieces.get(timeout=0.05)
            except queue.Empty:
                self._check()
                continue
            self._heard_s = time.monotonic()
            mono = data.mean(axis=1, dtype=np.float32)
            return Sound(mono, self._rate_hz, t_monotonic_s=t_monotonic_s, lost=lost)

    def _check(self) -> None:
        if self._finished.is_set():
            raise TransientSourceError(f"microphone {self._spec} was unplugged")
        silent_s = time.monotonic() - self._heard_s
        if silent_s > SILENT_S and not self._stream.active:
            raise TransientSourceError(f"microphone {self._spec} stopped")

    def close(self) -> None:
        """Gives the device back in a helper thread; waits for it, but not longer than 0.4 s."""
        stream, self._stream = self._stream, None
        if stream is None or _exiting.is_set():
            return
        helper = threading.Thread(target=_close, args=(stream,), name="edgemm-close-microphone", daemon=True)
        _closing.add(helper)
        helper.start()
        helper.join(CLOSE_TIMEOUT_S)


def _close(stream: Any) -> None:
    global _open_streams
    try:
        stream.abort(ignore_errors=True)
        stream.close(ignore_errors=True)
    finally:
        with _open_lock:
            _open_streams -= 1
        _closing.discard(threading.current_thread())


def _guard_exit(sounddevice: Any) -> None:
    """PortAudio hangs for ever when it is shut down while a stream is being closed, so at exit
    closing is waited for, and where it hangs the shutting down is left to the system."""
    ask_portaudio = sounddevice._exit_handler
    atexit.unregister(ask_portaudio)

    def shut_down() -> None:
        _exiting.set()
        for helper in list(_closing):
            helper.join(CLOSE_TIMEOUT_S)
        if not _closing:
            ask_portaudio()

    atexit.register(shut_down)


def _scan(sounddevice: Any) -> None:
    """Lists the devices anew: PortAudio only sees what was there when it was initialized.

    That ends all of its streams, so it is done only while none is open.
    """
    global _scanned
    if not _scanned:
        _guard_exit(sounddevice)
    if _scanned and _open_streams == 0:
        sounddevice._terminate()
        sounddevice._initialize()
    _scanned = True


def _matching(sounddevice: Any, spec: str) -> list[dict[str, Any]]:
    with quiet_stderr():
        devices = [d for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
    if spec.isdecimal():
        return [device for device in devices if device["index"] == int(spec)]
    part = spec.strip().casefold()
    return [device for device in devices if part and part in str(device["name"]).casefold()]


def _find(sounddevice: Any, spec: str) -> dict[str, Any]:
    if spec == "default":
        number = sounddevice.default.device[0]
        devices = list(sounddevice.query_devices())
        if 0 <= number < len(devices) and devices[number]["max_input_channels"] > 0:
            return dict(devices[number])
    else:
        matches = _matching(sounddevice, spec)
        if matches:
            return dict(matches[0])
    names = [
        f"{device['index']} ({device['name']})"
        for device in sounddevice.query_devices()
        if device["max_input_channels"] > 0
    ]
    found = f"microphones found: {', '.join(names)}" if names else "no microphone was found"
    raise SourceError(
        f"microphone {spec}: not there; {found}",
        hint="run: edgemm devices, or try --mic test://, a sound file or none",
    )
