"""`none`: a camera or a microphone that gives nothing and ends at once."""

from __future__ import annotations

from edgemm.live.sources.base import Sound


class NoVideo:
    """Ends before the first frame."""

    def open(self) -> None:
        """There is nothing to open."""

    def read(self) -> None:
        """Always the end."""

    def close(self) -> None:
        """There is nothing to close."""


class NoSound:
    """Ends before the first sound."""

    def open(self) -> None:
        """There is nothing to open."""

    def read(self) -> Sound | None:
        """Always the end."""
        return None

    def close(self) -> None:
        """There is nothing to close."""
