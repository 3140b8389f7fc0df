"""The URL of a network sink."""

from __future__ import annotations

import importlib
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edgemm.errors import SinkError, UsageError, missing_extra
from edgemm.live.sources.base import redact


@dataclass(frozen=True)
class SinkUrl:
    """A URL in parts. `shown` has neither user, password nor options, so it may stand in events and
    messages."""

    scheme: str
    host: str
    port: int
    path: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The address for people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{host}{port}" + (f"/{self.path}" if self.path else "")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own and no other's."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_in(text: str) -> str:
    """The host of a URL or of a Host header (`//host:port`), "" of what is neither."""
    try:
        return urlsplit(text).hostname or ""
    except ValueError:
        return ""


def parse(text: str, *, port: int, options: tuple[str, ...] = (), host: str = "127.0.0.1") -> SinkUrl:
    """The parts of a URL; `port` and `host` are taken where it names none. Raises UsageError for a
    port that is none and for unknown options."""
    try:
        parts = urlsplit(text)
        number = port if parts.port is None else parts.port
    except ValueError as error:
        raise UsageError(f"{redact(text)} is no URL: {redact(str(error))}", hint="write scheme://host:port") from error
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [name for name in given if name not in options]
    if unknown:
        known = ", ".join(options) or "none"
        raise UsageError(f"{redact(text)} has the unknown option {unknown[0]!r}", hint=f"there are: {known}")
    return SinkUrl(
        scheme=parts.scheme.lower(),
        host=parts.hostname or host,
        port=number,
        path=parts.path.strip("/"),
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        options=given,
    )


def cannot_serve(name: str, error: OSError) -> SinkError:
    """The error where an address, called `name`, cannot be had. asyncio's own words are longer than the system's."""
    by_number = error.errno and not isinstance(error, socket.gaierror)
    why = os.strerror(error.errno or 0) if by_number else error.strerror or error
    return SinkError(
        f"{name} cannot be served: {why}",
        hint="another program has this port: give another one, or end that program",
    )


def need(module: str, package: str, extra: str = "sinks") -> Any:
    """An optional module. Raises RuntimeUnavailable with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(package, extra, error) from error
