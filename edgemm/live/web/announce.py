"""The address of the live page, for people and their phones."""

from __future__ import annotations

import importlib.util
import io
from urllib.parse import urlsplit

from edgemm.live.sinks.address import is_loopback


def announcement(url: str) -> str:
    """One line, and below it the address as a QR code where another device can open it (extra `web`)."""
    line = f"the live page: {url}"
    if is_loopback(urlsplit(url).hostname or "") or importlib.util.find_spec("segno") is None:
        return line
    import segno

    code = io.StringIO()
    segno.make(url, error="l", micro=False).terminal(code, border=2, compact=True)
    return f"{line}\n{code.getvalue()}"
