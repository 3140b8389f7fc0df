"""Strings that end a text, and text that is shown while it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`; all of it where none occurs."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else text


class Shown:
    """Passes pieces of a text on to `tell`: what may be the beginning of a stop is held back until it is decided."""

    def __init__(self, tell: Callable[[str], None] | None, stops: Sequence[str] = ()) -> None:
        self._tell, self._stops = tell, tuple(stops)
        self._held, self._ended = "", False

    def push(self, piece: str, *, final: bool = False) -> None:
        """Take the next piece; with `final` nothing is held back any more."""
        if self._ended:
            return
        text = self._held + piece
        whole = before_stop(text, self._stops)
        self._ended = len(whole) < len(text)
        keep = 0 if self._ended or final else self._open(text)
        self._held = text[len(text) - keep :] if keep else ""
        shown = whole[: len(whole) - keep]
        if shown and self._tell is not None:
            self._tell(shown)

    def _open(self, text: str) -> int:
        """Length of the longest end of `text` that a stop begins with."""
        ends = [n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max(ends, default=0)
