"""Tokens → words: at spaces, or where a character is whole in languages that write none; punctuation joins its word.

The rules are those of transformers' Whisper tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Codes of the languages that are written without spaces between words."""

_HALF = "\ufffd"
_OPENS = "\"'“¡¿([{-"
_CLOSES = "\"'.。,，!！?？:：”)]}、"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Group:
    """A word as it stands in the text, with the space before it, and which tokens it is made of: `first` up to, but
    without, `end`."""

    text: str
    first: int
    end: int

    def __add__(self, after: Group) -> Group:
        return Group(self.text + after.text, self.first, after.end)


def words_of(tokens: Sequence[int], decode: Decode, *, spaced: bool = True) -> list[Group]:
    """The words of `tokens`, which are all text; their texts joined are the text.

    Without `spaced` every whole character, or token of several, is a word.
    """
    groups = _characters(tokens, decode)
    if spaced:
        groups = _at_spaces(groups)
    return [group for group in _with_closing(_with_opening(groups)) if group.text]


def _characters(tokens: Sequence[int], decode: Decode) -> list[Group]:
    """The fewest tokens that together are whole characters. What never becomes whole is left out."""
    text = decode(tokens)
    groups: list[Group] = []
    first = at = 0
    for end in range(1, len(tokens) + 1):
        piece = decode(tokens[first:end])
        half = piece.find(_HALF)
        # A replacement character that the whole text has too was said.
        if half < 0 or at + half >= len(text) or text[at + half] == _HALF:
            groups.append(Group(piece, first, end))
            first, at = end, at + len(piece)
    return groups


def _at_spaces(pieces: Sequence[Group]) -> list[Group]:
    words: list[Group] = []
    for piece in pieces:
        if not words or piece.text.startswith(" ") or piece.text.strip() in _PUNCTUATION:
            words.append(piece)
        else:
            words[-1] += piece
    return words


def _with_opening(words: Sequence[Group]) -> list[Group]:
    """What opens (quotes, brackets) joined to the word behind it."""
    joined: list[Group] = []
    for word in reversed(words):
        if joined and word.text.startswith(" ") and word.text.strip() in _OPENS:
            joined[-1] = word + joined[-1]
        else:
            joined.append(word)
    return joined[::-1]


def _with_closing(words: Sequence[Group]) -> list[Group]:
    """What closes (stops, commas, brackets) joined to the word before it."""
    joined: list[Group] = []
    for word in words:
        if joined and not joined[-1].text.endswith(" ") and word.text in _CLOSES:
            joined[-1] += word
        else:
            joined.append(word)
    return joined
