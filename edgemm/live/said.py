"""What an event says in one line, for whoever shows texts."""

from __future__ import annotations

from edgemm.live.events import (
    AnswerEvent,
    CaptionEvent,
    DescriptionEvent,
    ErrorEvent,
    Event,
    LabelsEvent,
    TranscriptEvent,
)
from edgemm.live.overlay import label_name


def said(event: Event) -> str:
    """The best label, a caption, a final transcript, a question with its answer, an error; empty for other events."""
    if isinstance(event, LabelsEvent):
        return f"{label_name(event.labels[0].label)} {event.labels[0].score:.2f}" if event.labels else ""
    if isinstance(event, AnswerEvent):
        return f"{event.question} {event.text}"
    if isinstance(event, TranscriptEvent):
        return event.text if event.final else ""
    if isinstance(event, (CaptionEvent, DescriptionEvent)):
        return event.text
    return event.message if isinstance(event, ErrorEvent) else ""
