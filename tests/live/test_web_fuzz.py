"""Broken requests to the live page: none makes it fail, stop or keep something."""

from __future__ import annotations

import pytest

from tests.fuzzing import Fuzz, Leaks, storm
from tests.live.web_clients import WebSink, address, get, request, running

_SOCKET = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
_OFFER = b'{"viewer": "nobody", "source": "camera", "sdp": "v=0"}'
# {"task": "classify", "on": false}, masked with zeros as a client may
_FRAME = b"\x81\xa1\0\0\0\0" + b'{"task": "classify", "on": false}'


@pytest.mark.parametrize("for_s", [6.0, pytest.param(600.0, marks=pytest.mark.slow)])
def test_nothing_fails_and_nothing_leaks(for_s, caplog):
    sink = WebSink("127.0.0.1:0")
    with running(sink):
        host = f"127.0.0.1:{sink.port}"
        seeds = [request(sink, path, connection="close") for path in ("/", "/page.js", "/stream.mjpg", "/%2e%2e/x")]
        origins = ("http://[", f"http://{host}", "http://elsewhere.example", "null", "")
        seeds += [request(sink, "/", connection="close", Origin=origin) for origin in origins]
        seeds += [request(sink, path, **_SOCKET) + _FRAME for path in ("/events", "/camera", "/mic")]
        offer = request(sink, "/rtc/offer", connection="close", Content_Length=len(_OFFER)).replace(b"GET", b"POST", 1)
        seeds += [offer + _OFFER]
        storm(address(sink), Fuzz(host, seeds, [], seed=0), 1.0)
        leaks = Leaks()
        statuses, failed = storm(address(sink), Fuzz(host, seeds, [], seed=1), for_s)
        assert failed == []
        assert {101, 200, 400, 403, 404} <= set(statuses)
        assert not set(statuses) - {0, 100, 101, 200, 400, 403, 404, 405, 408, 409, 411, 413, 417, 426, 429, 503}
        leaks.assert_none(threads=4, mib=64)
        assert get(sink)[0] == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
