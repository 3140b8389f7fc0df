"""What is wrong with an address is told apart by an error code, and no password is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgemm.errors import SourceError
from edgemm.live.sources import network
from edgemm.live.sources.base import TransientSourceError

TRANSIENT = {"source", "source_unreachable", "source_dns", "source_timeout"}


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """A port where every question gets these bytes and the end; None: silence."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            if answer is not None and connection.recv(4096):
                connection.sendall(answer)
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in held:
            connection.close()


def _http(status: str, body: str = "") -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _rtsp(status: str) -> bytes:
    return f"RTSP/1.0 {status}\r\nCSeq: 1\r\n\r\n".encode()


def _error(url: str) -> SourceError:
    reader = network.NetworkContainer(url, "video")
    with pytest.raises(SourceError) as caught:
        reader.open()
    reader.close()
    assert "secret" not in str(caught.value)
    assert caught.value.hint
    assert isinstance(caught.value, TransientSourceError) == (caught.value.code in TRANSIENT)
    return caught.value


@pytest.mark.parametrize(
    ("scheme", "answer", "code"),
    [
        ("http", _http("401 Unauthorized"), "source_auth"),
        ("http", _http("403 Forbidden"), "source_auth"),
        ("http", _http("404 Not Found"), "source_not_found"),
        ("http", _http("410 Gone"), "source_refused"),
        ("http", _http("503 Busy"), "source"),
        ("http", _http("200 OK", "<html>" + "no camera " * 400), "source_codec"),
        ("rtsp", _rtsp("401 Unauthorized"), "source_auth"),
        ("rtsp", _rtsp("404 Not Found"), "source_not_found"),
        ("https", _http("200 OK"), "source_tls"),
        ("rtsps", _rtsp("200 OK"), "source_tls"),
    ],
)
def test_what_a_server_says(scheme: str, answer: bytes, code: str) -> None:
    with server(answer) as port:
        assert _error(f"{scheme}://me:secret@127.0.0.1:{port}/cam").code == code


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp", "rtsps"])
def test_a_server_that_says_nothing(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_TIMEOUT", (0.5, 0.5))
    with server(None) as port:
        assert _error(f"{scheme}://me:secret@127.0.0.1:{port}/cam").code == "source_timeout"


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
def test_no_server(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert _error(f"{scheme}://me:secret@127.0.0.1:{port}/cam").code == "source_unreachable"


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
def test_an_unknown_host(scheme: str) -> None:
    error = _error(f"{scheme}://me:secret@no-such-camera.invalid/cam")
    assert error.code == "source_dns"
    assert "name" in error.message


def test_the_code_is_what_json_says() -> None:
    assert SourceError("gone", hint="look", code="source_dns").as_dict() == {
        "code": "source_dns",
        "message": "gone",
        "hint": "look",
    }
    assert SourceError("gone").code == SourceError.code == "source"
