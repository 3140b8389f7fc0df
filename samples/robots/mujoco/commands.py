"""Which command was spoken, although a small speech model mishears some of it."""

from __future__ import annotations

import difflib
import re
from typing import Literal

Command = Literal["forward", "backward", "left", "right", "around", "stop"]

PHRASES: dict[Command, tuple[str, ...]] = {
    "forward": ("drive forward", "go forward"),
    "backward": ("drive backward", "go backward", "go back"),
    "left": ("turn left", "turn to the left"),
    "right": ("turn right", "turn to the right"),
    "around": ("turn around", "turn round"),
    "stop": ("stop", "stop now", "stop the rover"),
}
LEAST_LIKENESS = 0.75


def spoken_command(text: str) -> Command | None:
    """The command whose phrase is most like some words in a row of a transcript; None where none is like enough.

    Likeness is difflib's ratio: 1 for the same letters, 0.89 for "turn lift" and "turn left". Whole words are compared,
    so that "unstoppable" is no "stop".
    """
    words = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    likeness = {command: max(_likeness(words, phrase) for phrase in PHRASES[command]) for command in PHRASES}
    best = max(likeness, key=likeness.__getitem__)
    return best if likeness[best] >= LEAST_LIKENESS else None


def _likeness(words: list[str], phrase: str) -> float:
    """Of a phrase and those neighbouring words that are most like it: as many as it has, or one fewer or more."""
    count = len(phrase.split())
    heard = (
        " ".join(words[first : first + length])
        for length in (count - 1, count, count + 1)
        for first in range(len(words) - length + 1)
    )
    return max((difflib.SequenceMatcher(None, some, phrase, autojunk=False).ratio() for some in heard), default=0.0)
