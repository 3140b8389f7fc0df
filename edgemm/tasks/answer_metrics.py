"""How right answers to questions are: exact match, and the accuracy of the VQA challenge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgemm.tasks.metrics import Scores

ANNOTATORS = 10  # from so many answers on, people are polled; fewer are alternatives
_ENOUGH = 3  # annotators who agree

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(max(0, place - 1)) for place, word in enumerate(_NUMBERS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_NUMBER_COMMA = re.compile(r"\d,\d")
# Shortened words that may lack their apostrophe, by what stands behind it: dont, youre.
_SHORTENED = {
    "'t": "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn oughtn shan shouldn wasn weren won"
    " wouldn",
    "'ve": "could might must not should they we what where who would you",
    "'re": "there they what why you",
    "'ll": "how it somebody someone something they what who why you",
    "'d": "he how it someone something there they where who you",
    "'s": "he how somebody someone that there what when where who why",
}
_APOSTROPHES = {start + end[1:]: start + end for end, starts in _SHORTENED.items() for start in starts.split()}
_APOSTROPHES |= {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"}


def exact_match(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Scores:
    """Share in percent of answers that are one of the references; case and white space do not count."""
    pairs = zip(references, hypotheses, strict=True)
    return Scores.mean(100.0 * (_plain(said) in map(_plain, own)) for own, said in pairs)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def vqa_accuracy(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Scores:
    """Accuracy in percent of visual question answering (Antol et al., 2015), answers normalised on both sides.

    Of ten or more people's answers every one is left out once; of the others so many must agree with the answer
    that a third each, at most 1, is its score; the mean counts. Fewer answers are alternatives of which any is right.
    """
    return Scores.mean(100 * _accuracy(own, said) for own, said in zip(references, hypotheses, strict=True))


def _accuracy(answers: Sequence[str], said: str) -> float:
    wanted = normalised_answer(said)
    agree = [normalised_answer(answer) == wanted for answer in answers]
    if len(agree) < ANNOTATORS:
        return float(any(agree))
    return sum(min(1.0, (sum(agree) - own) / _ENOUGH) for own in agree) / len(agree)


def normalised_answer(text: str) -> str:
    """An answer as the challenge compares it: lower case, no articles, digits for number words up to ten.

    Punctuation goes, apart from apostrophes, colons and decimal points; contractions get their apostrophe back
    (visualqa.org/evaluation.html). Of the challenge's own list those with two apostrophes are missing.
    """
    text = " ".join(text.replace("’", "'").split()).lower()
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).split())
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Marks between words become a space, those at a word's edge nothing; all vanish beside a number such as 1,000."""
    thousands = _NUMBER_COMMA.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if thousands or at_edge else " ")
    return _FULL_STOP.sub("", plain)
