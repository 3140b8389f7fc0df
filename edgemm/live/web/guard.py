"""Who may see the page: checks of Host, Origin, token and path, and how much a client may send."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from edgemm.live.sinks.address import host_in, is_loopback

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "media-src 'self' blob:; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """What a request must show. `token` "" means that none is needed, which only loopback may do."""

    host: str
    token: str
    cookie: str

    def refusal(self, request: Any) -> tuple[int, str] | None:
        """The status and the sentence that refuse a request; None where it is welcome.

        A page of another site, in a browser that can reach this address, is stopped by Host (where its name was made
        to point here), by Origin (WebSockets) and by Sec-Fetch-Site (pictures in a foreign page).
        """
        headers = request.headers
        if not all(_is_text(value) for _, value in request.raw_headers):
            return 400, "a header is no text"
        if not headers.get("Sec-WebSocket-Key", "").isascii():  # on which aiohttp fails
            return 400, "Sec-WebSocket-Key is no base64"
        if ".." in unquote(request.raw_path.partition("?")[0]):
            return 400, "no such path"
        if not self._host_is_own(headers.get("Host", "")):
            return 403, "this address is not served under that name: use the one that was printed"
        origin = headers.get("Origin")
        if origin is not None and origin.partition("://")[2].lower() != headers.get("Host", "").lower():
            return 403, "pages of other sites are not served"
        if headers.get("Sec-Fetch-Site") == "cross-site" and headers.get("Sec-Fetch-Mode") != "navigate":
            return 403, "pages of other sites are not served"
        if self.token and not self._token_is_right(request):
            return 401, "the token is missing or wrong: open the address that edgemm run printed"
        return None

    def _host_is_own(self, header: str) -> bool:
        name = host_in(f"//{header}")
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        own = socket.gethostname().lower()
        return _is_address(name) or name in (self.host.lower(), own, f"{own}.local")

    def _token_is_right(self, request: Any) -> bool:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = bearer or request.query.get("token") or request.cookies.get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.token.encode())


def _is_text(value: bytes) -> bool:
    """aiohttp refuses a wrong header with its value, and fails where that cannot be written."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_address(name: str) -> bool:
    """No name that somebody else's DNS could make to point here."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def server_log() -> logging.Logger:
    """What aiohttp's server writes its errors to. A request that is no HTTP is answered, a client may leave, and
    neither is a reason to fill a log: anybody could.
    """
    log = logging.getLogger(f"{__name__}.server")
    if not log.filters:
        log.addFilter(_is_own)
    return log


def _is_own(record: logging.LogRecord) -> bool:
    from aiohttp.http_exceptions import HttpProcessingError

    return not (record.exc_info and isinstance(record.exc_info[1], (HttpProcessingError, ConnectionError)))


class Rate:
    """Admits `per_s` messages a second on average, `burst` at once."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst, self._left = per_s, burst, burst
        self._at_s = time.monotonic()

    def admits(self) -> bool:
        """Whether one more may come now."""
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
