"""BLEU and ROUGE-L of captions, as pycocoevalcap computes them; CIDEr-D has a file of its own."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemm.tasks.metrics import Scores

Tokens = Sequence[str]
Gram = tuple[str, ...]

ORDERS = 4  # n-grams of 1 to 4 words
_BETA = 1.2  # recall weighs more than precision
# What keeps BLEU from dividing by 0; both values are pycocoevalcap's.
_TINY, _SMALL = 1e-15, 1e-9

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_REMOVED = frozenset(["'", "`", ".", "?", "!", ",", ":", "-", ";", '"', "“", "”", "‘", "…", "–", "—"])
_CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
_TOKEN = re.compile(
    r"\w+?(?=n't\b)|n't\b"  # do n't
    r"|can(?=not\b)|(?:gon|wan)(?=na\b)|got(?=ta\b)"
    rf"|{_CLITIC}"  # man 's
    r"|(?:[^\W\d]\.){2,}"  # u.s.
    r"|\d+(?:[.,:]\d+)+"  # 10:30
    rf"|\w+(?:[-/]\w+|(?!{_CLITIC})'\w+)*"  # two-door, o'clock
    r"|[!?]{2,}|[^\w\s]"
)


def caption_tokens(text: str) -> list[str]:
    """A caption in lower-case tokens, without punctuation, as pycocoevalcap's PTBTokenizer (Java) has it.

    Contractions are split (do n't, man 's), words with hyphens are not, brackets have names (-lrb-). It differs in
    what captions seldom have: titles keep no full stop (mr., no.), web addresses, smileys and signed numbers are taken
    apart, and emoji stay. Both are made for English.
    """
    plain = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    return [_BRACKETS.get(token, token) for token in _TOKEN.findall(plain) if token not in _REMOVED]


def grams_of(tokens: Tokens) -> Counter[Gram]:
    """How often every sequence of 1 to 4 tokens is there."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(tokens) - order + 1)
    )


def bleu(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> tuple[Scores, ...]:
    """BLEU-1 to BLEU-4 in percent (Papineni et al., 2002), with the closest reference's length.

    `references` has one list or more of tokens for each of `hypotheses`. The totals count n-grams over all examples;
    they are no means of the examples' own values.
    """
    rows = [_counted(*pair) for pair in zip(references, hypotheses, strict=True)]
    each = [_bleus(row) for row in rows]
    total = _bleus(np.sum(rows, 0)) if rows else [0.0] * ORDERS
    return tuple(Scores(total[n], tuple(own[n] for own in each)) for n in range(ORDERS))


def _counted(references: Sequence[Tokens], hypothesis: Tokens) -> NDArray[np.int64]:
    """Length, closest reference's length, then n-grams that are right and n-grams that are there, by their order."""
    allowed: Counter[Gram] = Counter()
    for reference in references:
        allowed |= grams_of(reference)
    right = grams_of(hypothesis) & allowed
    length = len(hypothesis)
    closest = min((abs(len(r) - length), len(r)) for r in references)[1]
    orders = range(1, ORDERS + 1)
    hits = [sum(count for gram, count in right.items() if len(gram) == n) for n in orders]
    return np.array([length, closest, *hits, *(max(0, length - n + 1) for n in orders)], np.int64)


def _bleus(row: NDArray[np.int64]) -> list[float]:
    """BLEU of every order in percent."""
    length, closest, *counts = map(int, row)
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    shares = [(hit + _TINY) / (there + _SMALL) for hit, there in zip(counts[:ORDERS], counts[ORDERS:], strict=True)]
    return [100 * brevity * math.prod(shares[:n]) ** (1 / n) for n in range(1, ORDERS + 1)]


def rouge_l(references: Sequence[Sequence[Tokens]], hypotheses: Sequence[Tokens]) -> Scores:
    """ROUGE-L in percent (Lin, 2004): the F measure, β 1.2, of the longest common subsequence; the mean of examples.

    Precision and recall are each the best over an example's references.
    """
    return Scores.mean(_rouge_l(*pair) for pair in zip(references, hypotheses, strict=True))


def _rouge_l(references: Sequence[Tokens], hypothesis: Tokens) -> float:
    # A text without words is one empty word, as it is to the original.
    said = hypothesis or ("",)
    shared = [(_longest_common(r or ("",), said), len(r or ("",))) for r in references]
    precision = max(common for common, _ in shared) / len(said)
    recall = max(common / length for common, length in shared)
    if not precision or not recall:
        return 0.0
    return 100 * (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        before = 0
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if left == right else max(row[j], row[j - 1])
    return row[-1]


def tokenized(references: Iterable[Sequence[str]]) -> list[list[list[str]]]:
    """Every example's references as tokens."""
    return [[caption_tokens(text) for text in own] for own in references]
