"""Ports of this machine."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port of loopback that nothing has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
