"""A transcript in the forms that OpenAI's transcription has: JSON, text, and subtitles."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgemm.results import Segment, Transcript


def written(form: str, transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    """The content type and the text of a transcript of a sound of so many `seconds`; `form` is one of FORMATS."""
    return FORMATS[form](transcript, seconds, language)


def _json(transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    document: dict[str, Any] = {"text": transcript.text.strip()}
    if transcript.words:
        document["words"] = _words(transcript)
    return "application/json", json.dumps(document, ensure_ascii=False)


def _verbose(transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    segments = [
        {"id": i, "start": s.t_start_s, "end": s.t_end_s, "text": s.text}
        for i, s in enumerate(_segments(transcript, seconds))
    ]
    document: dict[str, Any] = {
        "task": "transcribe", "language": language or "", "duration": seconds,
        "text": transcript.text.strip(), "segments": segments,
    }  # fmt: skip
    if transcript.words:
        document["words"] = _words(transcript)
    return "application/json", json.dumps(document, ensure_ascii=False)


def _words(transcript: Transcript) -> list[dict[str, Any]]:
    return [{"word": w.text.strip(), "start": w.start_s, "end": w.end_s} for w in transcript.words]


def _plain(transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    return "text/plain", transcript.text.strip() + "\n"


def _srt(transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    blocks = [
        f"{i}\n{_clock(s.t_start_s, ',')} --> {_clock(s.t_end_s, ',')}\n{s.text.strip()}\n"
        for i, s in enumerate(_segments(transcript, seconds), 1)
    ]
    return "text/plain", "\n".join(blocks)


def _vtt(transcript: Transcript, seconds: float, language: str | None) -> tuple[str, str]:
    blocks = [
        f"{_clock(s.t_start_s, '.')} --> {_clock(s.t_end_s, '.')}\n{s.text.strip()}\n"
        for s in _segments(transcript, seconds)
    ]
    return "text/vtt", "\n".join(["WEBVTT\n", *blocks])


def _segments(transcript: Transcript, seconds: float) -> tuple[Segment, ...]:
    """The transcript's own, else the whole as one."""
    return transcript.segments or (Segment(transcript.text, 0.0, seconds),)


def _clock(t_s: float, point: str) -> str:
    ms = round(t_s * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


FORMATS: dict[str, Callable[[Transcript, float, str | None], tuple[str, str]]] = {
    "json": _json, "verbose_json": _verbose, "text": _plain, "srt": _srt, "vtt": _vtt,
}  # fmt: skip
