"""What clients of a network sink may say: questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgemm.errors import EdgemmError, InputError, TaskUnavailable

QUESTION_CHARS = 2000


def document_of(message: str | bytes) -> dict[str, Any]:
    """The JSON object of a message; empty where it is none."""
    try:
        document = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def reply(document: dict[str, Any], ask: Callable[[str], int] | None) -> dict[str, Any]:
    """Asks what `{"ask": "…"}` asks, and says what the asker is told: `{"asked": {"question_id": n}}` or
    `{"error": {…}}`."""
    try:
        return {"asked": {"question_id": _asked(document.get("ask"), ask)}}
    except EdgemmError as error:
        return {"error": error.as_dict()}


def _asked(question: object, ask: Callable[[str], int] | None) -> int:
    if not isinstance(question, str) or not 0 < len(question.strip()) <= QUESTION_CHARS:
        raise InputError(
            "the message is no question", hint=f'send {{"ask": "…"}} with at most {QUESTION_CHARS} characters'
        )
    if ask is None:
        raise TaskUnavailable("this run cannot answer questions", hint="use a bundle with the task answer")
    return ask(question.strip())
