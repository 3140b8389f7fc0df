"""Network cameras: RTSP over TCP, and MJPEG (or another live stream) over HTTP.

Certificates are not checked: cameras sign their own.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from edgemm.errors import SourceError
from edgemm.live.sources.base import Wish, redact
from edgemm.live.sources.container import Container, ContainerAudio, ContainerVideo, code_of

OPEN_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 3.0
PROBE_TIMEOUT_S = 0.2
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_TIMEOUT = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)

# Probing is what makes RTSP slow to open (1.2 s against 0.2 s): the SDP already says the codec.
_RTSP: dict[str, Any] = {
    "options": {
        "rtsp_transport": "tcp",
        "probesize": "32",
        "analyzeduration": "0",
        "fflags": "nobuffer",
    },
}
_MJPEG: dict[str, Any] = {"format": "mpjpeg", "options": {"fflags": "nobuffer"}}
_ANY: dict[str, Any] = {"options": {"fflags": "nobuffer"}}


class NetworkContainer(Container):
    """A live stream at an address."""

    def __init__(self, url: str, media: str) -> None:
        choices = (_MJPEG, _ANY) if urlsplit(url).scheme in ("http", "https") else (_RTSP,)
        super().__init__(url, media, tuple({**choice, "timeout": _TIMEOUT} for choice in choices), live=True)

    def open(self) -> None:
        """Raises SourceError, TransientSourceError."""
        super().open()
        if self.duration_s is not None:
            self.close()
            raise SourceError(
                f"{redact(self._address)} is a file, and a live stream was expected",
                hint="download it and give its path",
            )

    def _cause(self, error: Exception) -> str:
        code = super()._cause(error)
        return _look(self._address) if code == "source" and self.stream is None else code


def network_video(url: str, wish: Wish) -> ContainerVideo:
    """Pictures of a network camera."""
    return ContainerVideo(NetworkContainer(url, "video"), wish)


def network_audio(url: str) -> ContainerAudio:
    """Sound of a network camera."""
    return ContainerAudio(NetworkContainer(url, "audio"))


def answers(url: str) -> bool:
    """Whether something accepts connections at the address, within 0.2 s."""
    try:
        _connect(url, PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _look(url: str) -> str:
    """Why an address could not be opened where FFmpeg only speaks of input and output."""
    try:
        with _connect(url, OPEN_TIMEOUT_S) as connection:
            if urlsplit(url).scheme in ("https", "rtsps"):
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.wrap_socket(connection).close()
    except socket.gaierror:
        return "source_dns"
    except ssl.SSLError:
        return "source_tls"
    except OSError as error:
        return code_of(error)
    return "source"


def _connect(url: str, timeout_s: float) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)), timeout_s)
