"""A network camera in this process: MJPEG over HTTP, with its clock painted into the pictures.

It can freeze (the connection stays, nothing comes), drip (a byte now and then), drop (the connection ends), send
garbage between pictures or nothing but noise, change its size and its rate, refuse (401, 404) and be unplugged (the
port closes).
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import cv2
import numpy as np

from edgemm.live.sources.testing import paint_clock


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that hangs up is no error."""


class MjpegCamera:
    """`with MjpegCamera() as camera: ... camera.url`. Set its attributes to play a fault."""

    def __init__(self, *, fps: float = 30.0, size_px: tuple[int, int] = (640, 480), port: int = 0) -> None:
        self.fps, self.size_px = fps, size_px
        self.frozen = threading.Event()
        self.dripping = threading.Event()
        self.garbage = False
        self.noise = False
        self.status = 200
        self.sent = 0
        self._hang_up = 0
        self._server: _Server | None = None
        self.port = port

    @property
    def url(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.port}/video.mjpg"

    def __enter__(self) -> MjpegCamera:
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
        """Listens (again, on the same port)."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def unplug(self) -> None:
        """Ends all connections and closes the port."""
        self.drop()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def drop(self) -> None:
        """Ends all connections; new ones are welcome."""
        self._hang_up += 1

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        if self.status != 200:
            handler.send_error(self.status)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        mine, due_s = self._hang_up, time.monotonic()
        while mine == self._hang_up:
            if self.frozen.is_set():
                time.sleep(0.005)
                due_s = time.monotonic()
                continue
            time.sleep(max(0.0, due_s - time.monotonic()))
            due_s += 1 / self.fps
            part = np.random.default_rng(self.sent).bytes(20_000) if self.noise else self._part()
            while self.dripping.is_set() and mine == self._hang_up and part:
                handler.wfile.write(part[:1])
                part = part[1:]
                time.sleep(0.05)
            handler.wfile.write(part)
            self.sent += 1

    def _part(self) -> bytes:
        width, height = self.size_px
        image = np.full((height, width, 3), 90, np.uint8)
        image[:, : self.sent * 5 % width] = (40, 160, 220)
        paint_clock(image, int(time.monotonic() * 1000))
        data = cv2.imencode(".jpg", image)[1].tobytes()
        if self.garbage and self.sent % 3 == 0:
            data = data[: len(data) // 3] + bytes(200)
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data + b"\r\n"
