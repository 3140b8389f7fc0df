"""Transcripts of an utterance that goes on: which words are settled, and when to decode again."""

from __future__ import annotations

import math
import re
from collections import deque

LAG_S = 2.0

_RATES = 6


class Agreement:
    """LocalAgreement-2 (Liu et al., 2020, arXiv 2005.11185) over the decodes of one utterance.

    The words that two successive decodes begin with are stable. A later decode that contradicts them is shown behind
    them: what follows the words of it that are nearest to them by edit distance.
    """

    def __init__(self) -> None:
        self._shown = ""
        self._stable = ""

    def push(self, text: str) -> tuple[str, int]:
        """A decode of more sound than the last one; the text to show, and how many characters of it are stable."""
        shown = text if text.startswith(self._stable) else self._behind_stable(text)
        self._stable = shown[: _common(self._shown, shown, len(self._stable))]
        self._shown = shown
        return shown, len(self._stable)

    def _behind_stable(self, text: str) -> str:
        starts = [match.start() for match in re.finditer(r"\S+", text)]
        first = _nearest_prefix(self._stable.split(), text.split())
        rest = text[starts[first] :] if first < len(starts) else ""
        return f"{self._stable} {rest}".rstrip()


class Pace:
    """When the next partial decode is due, in seconds on any clock; with `every_s` None never.

    At most half of the time goes into decoding, unless text would then be more than `LAG_S` behind the sound: the
    time from the start of one decode to the end of the next is kept within it for as long as a decode takes half of it.
    """

    def __init__(self, every_s: float | None) -> None:
        self._never = every_s is None
        self._every_s = every_s or 0.0
        self._due_s = 0.0
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._fastest_s = self._last_s = math.inf

    def due(self, now_s: float) -> bool:
        """Whether it is time."""
        return not self._never and now_s >= self._due_s

    def reset(self) -> None:
        """Another utterance: the first decode is due at once."""
        self._due_s = 0.0

    def decoded(self, began_s: float, took_s: float, sound_s: float) -> None:
        """A decode of `sound_s` of sound is done."""
        self._rates.append(took_s / sound_s)
        self._fastest_s, self._last_s = min(took_s, self._fastest_s), took_s
        self._due_s = began_s + min(max(self._every_s, 2 * took_s), max(LAG_S - took_s, took_s))

    def too_long(self, sound_s: float) -> bool:
        """Whether a decode of so much sound would take too much of `LAG_S`, and a shorter one less: some models take
        as long for any sound.

        The best of the last decodes is the measure: one that other work held up splits nothing. The bound leaves room
        for the final of what is split off; it holds up to a real-time factor of 0.3.
        """
        grows = self._last_s > 2 * self._fastest_s
        return grows and min(self._rates) * sound_s > 0.3 * LAG_S


def _common(one: str, other: str, least: int) -> int:
    """The length of the words that both texts begin with, the punctuation after the last one left out."""
    n = least
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    while n > least and not (_ends_word(one, n) and _ends_word(other, n)):
        n -= 1
    return n


def _ends_word(text: str, n: int) -> bool:
    return text[n - 1].isalnum() and (
        n == len(text) or text[n].isspace() or not (text[n].isalnum() or text[n] in "'’-")
    )


def _nearest_prefix(wanted: list[str], words: list[str]) -> int:
    """How many of `words` are nearest to `wanted` by edit distance; of equals, the number nearest to its own."""
    row = list(range(len(words) + 1))
    for i, want in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, word in enumerate(words, 1):
            cost = before + (_plain(want) != _plain(word))
            before, row[j] = row[j], min(cost, row[j] + 1, row[j - 1] + 1)
    return min(range(len(row)), key=lambda j: (row[j], abs(j - len(wanted))))


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word).casefold()
