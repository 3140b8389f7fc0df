"""What an event says in one line, for whoever shows texts."""

from __future__ import annotations

from edgemm.live.events import (
    AnswerEvent,
    CaptionEvent,
    DescriptionEvent,
    ErrorEvent,
    Event,
    LabelsEvent,
    TrackedObject,
    TranscriptEvent,
)
from edgemm.live.overlay import label_name
from edgemm.results import Label


def scored(found: Label | TrackedObject) -> str:
    """A name with its score."""
    return f"{label_name(found.label)} {found.score:.2f}"


def said(event: Event) -> str:
    """The best label, a caption, a final transcript, a question with its answer, an error; empty for other events."""
    if isinstance(event, LabelsEvent):
        return scored(event.labels[0]) if event.labels else ""
    if isinstance(event, AnswerEvent):
        return f"{event.question} {event.text}"
    if isinstance(event, TranscriptEvent):
        return event.text if event.final else ""
    if isinstance(event, (CaptionEvent, DescriptionEvent)):
        return event.text
    return event.message if isinstance(event, ErrorEvent) else ""
