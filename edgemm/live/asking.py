"""Which of the things that are said are questions to the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from edgemm.errors import TaskUnavailable, UsageError
from edgemm.live.inputs import microphone_of
from edgemm.live.options import StreamOptions
from edgemm.live.speech import Utterance

OPEN_S = 5.0


class SpokenQuestions:
    """Hands on what is asked aloud.

    Without wake phrases everything that ends with a question mark is a question. With them only what follows one of
    them is, with or without the mark: in the same utterance, or, where it ends with the phrase, in the next one that
    begins within `OPEN_S`. Case and punctuation don't matter, and half a word is no match.
    """

    def __init__(self, wake: Sequence[str], ask: Callable[[str], object]) -> None:
        phrases = (r"\W+".join(map(re.escape, re.findall(r"\w+", phrase))) for phrase in wake)
        self._wake = re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE) if wake else None
        self._ask = ask
        self._open_until_s = float("-inf")

    def said(self, text: str, utterance: Utterance) -> None:
        """The final text of an utterance, in the order in which they were said."""
        question = self._question(text, utterance)
        if question:
            self._ask(question)

    def _question(self, text: str, utterance: Utterance) -> str:
        if self._wake is None:
            return text if text.endswith("?") else ""
        if not re.search(r"\w", text):
            return ""
        found = self._wake.search(text)
        open_until_s, self._open_until_s = self._open_until_s, float("-inf")
        if found is None:
            return text if utterance.t_start_s <= open_until_s else ""
        question = re.sub(r"^\W+", "", text[found.end() :])
        if not question:
            self._open_until_s = utterance.t_end_s + OPEN_S
        return question


def check_wake(model: str, options: StreamOptions, tasks: Sequence[str]) -> None:
    """Raises UsageError or TaskUnavailable where wake phrases are of no use."""
    if not options.wake:
        return
    if not (microphone_of(options) or (options.push and options.mic is None)):
        raise UsageError("there is a wake phrase but no microphone", hint="give --mic, or leave --wake out")
    if not (options.open_cameras or (options.push and not options.cameras)):
        raise UsageError("there is a wake phrase but no camera to ask about", hint="give --camera")
    for task in ("transcribe", "answer"):
        if task not in tasks:
            raise TaskUnavailable(
                f"{model} cannot {task}, so a wake phrase is of no use",
                hint="use a bundle that transcribes and answers, or leave --wake out",
            )
