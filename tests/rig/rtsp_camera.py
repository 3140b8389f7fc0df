"""A real RTSP camera (H.264 or JPEG, and PCMA): GStreamer's server in a process of its own.

It freezes with SIGSTOP and is unplugged with SIGKILL, and may paint its own clock into the pictures as `test://` does
(edgemm/live/sources/testing.py reads it). Needs Debian's gir1.2-gst-rtsp-server-1.0
python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly. The
server half of this file runs under the system's Python, which has the bindings.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from types import TracebackType

SYSTEM_PYTHON = "/usr/bin/python3"
_CHECK = (
    "import gi; gi.require_version('GstRtspServer', '1.0');"
    "from gi.repository import Gst; Gst.init(None);"
    "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'alawenc')))"
)


def missing() -> str | None:
    """Why there can be no RTSP camera here, or None."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", _CHECK], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{SYSTEM_PYTHON}: {error}"
    return None if done.returncode == 0 else "GStreamer's RTSP server is not installed"


class RtspCamera:
    """`with RtspCamera() as camera: ... camera.url`; with a `clock` it shows that, else a ball."""

    def __init__(self, *, size: str = "640x480", fps: int = 30, clock: bool = False) -> None:
        self._size, self._fps, self._shows = size, fps, "clock" if clock else "ball"
        self.codec = "h264"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def __enter__(self) -> RtspCamera:
        self.plug()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.unplug()

    def plug(self) -> None:
        """Starts the camera and waits until it listens."""
        command = [SYSTEM_PYTHON, __file__, str(self.port), self._size, str(self._fps), self.codec, self._shows]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"

    def freeze(self) -> None:
        """It stays connected and sends nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def unplug(self) -> None:
        """It is gone, without a goodbye."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 ! rtph264pay name=pay0 pt=96",
    "jpeg": "videoconvert ! video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0 pt=26",
}


# Sound has its packets' length of latency, and holds up pictures for as long: none where their age is measured.
SOUND = " audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=97"

SOURCES = {
    "ball": "videotestsrc is-live=true pattern=ball",
    "clock": "appsrc name=clock is-live=true do-timestamp=true format=time stream-type=seekable",
}


def clock_picture(width: int, height: int, milliseconds: int) -> bytes:
    """I420: grey, 32 blocks in the first rows for the bits of a time, and a bar that moves on with it."""
    line = bytearray()
    for n in range(32):
        block_px = (n + 1) * width // 32 - n * width // 32
        line += bytes([235 if milliseconds >> (31 - n) & 1 else 16]) * block_px
    rows, at = max(height // 15, 1), milliseconds // 8 % (width - 16)
    below = bytes([90]) * at + bytes([200]) * 16 + bytes([90]) * (width - 16 - at)
    return bytes(line) * rows + below * (height - rows) + bytes([128]) * (width * height // 2)


class Clock:
    """Gives an appsrc a picture every 1/fps s, painted when it is due."""

    def __init__(self, size_px: tuple[int, int], fps: int) -> None:
        self._size_px, self._fps, self._due_s = size_px, fps, 0.0

    def need_data(self, source: object, _bytes: int) -> None:
        from gi.repository import GLib, Gst

        self._due_s = max(self._due_s + 1 / self._fps, time.monotonic() - 0.1)
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        picture = clock_picture(*self._size_px, int(time.monotonic() * 1000))
        source.emit("push-buffer", Gst.Buffer.new_wrapped_bytes(GLib.Bytes.new(picture)))  # type: ignore[attr-defined]


def serve(port: str, size: str, fps: str, codec: str, shows: str) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    width, height = size.split("x")

    def configure(_factory: object, media: GstRtspServer.RTSPMedia) -> None:
        source = media.get_element().get_by_name("clock")
        if source is not None:
            source.connect("need-data", Clock((int(width), int(height)), int(fps)).need_data)
            source.connect("seek-data", lambda *_: True)  # a player asks for its beginning

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    raw = f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
    # What makes its own pictures is told their form, the other is asked for it.
    source = f"{SOURCES[shows]} caps={raw}" if shows == "clock" else f"{SOURCES[shows]} ! {raw}"
    factory.set_launch(f"( {source} ! {ENCODERS[codec]}{SOUND if shows == 'ball' else ''} )")
    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("up", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    serve(*sys.argv[1:])
