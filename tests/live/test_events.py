"""Every event validates against the schema, and the schema refuses what is not one."""

from __future__ import annotations

import json

import jsonschema
import pytest

from edgemm.live import events as ev
from edgemm.live.event_schema import event_schema
from edgemm.results import Label

QUANTILES = ev.Quantiles(1.234567, 2.0, 3.0)
STATS = {
    "sources": {"camera": ev.SourceStats(captured=3, processed=1, dropped={"paced": 2})},
    "fps": 29.97002,
    "latency_ms": QUANTILES,
    "overhead_ms": ev.Quantiles(),
    "stages_ms": {"classify": ev.StageQuantiles(1.0, None)},
    "rss_mb": 101.26,
}
EXAMPLES = [
    ev.StartedEvent(
        bundle="b", config={"cameras": ["0"]}, wall_offset_s=1.5e9, runtime={"labels": "openvino"},
        precision={"labels": "int8"},
    ),
    ev.StatusEvent(source="camera", state="stalled", reason="no frame for 1.0 s"),
    ev.LabelsEvent(
        source="camera", labels=(Label("cat", 0.912345),), frame=7, t_capture_s=1.23456,
        model_ms=12.3456, latency_ms=13.0,
    ),
    ev.CaptionEvent(
        source="camera", text="a cat", confidence=None, frames=(1, 2), t_capture_s=1.0,
        model_ms=1.0, latency_ms=2.0,
    ),
    ev.DetectionsEvent(
        source="camera", objects=(ev.TrackedObject("cat", 0.9, (0.0, 1.0, 20.04, 30.0), 3),),
        frame=7, t_capture_s=1.0, model_ms=1.0, latency_ms=2.0,
    ),
    ev.SpeechEvent(source="mic", edge="start", utterance=0),
    ev.TranscriptEvent(
        source="mic", utterance=0, text="hi", final=True, stable_chars=2, t_start_s=0.5,
        t_end_s=1.0, latency_ms=200.0,
    ),
    ev.AnswerDeltaEvent(question_id=0, question="?", text="a", frames=(1,), t_capture_s=1.0),
    ev.AnswerEvent(
        question_id=0, question="?", text="a", frames=(1,), t_capture_s=1.0, ttft_ms=1.0,
        model_ms=2.0, latency_ms=3.0,
    ),
    ev.DescriptionEvent(text="a", t_start_s=0.0, t_end_s=1.0, frames=(1,)),
    ev.InterruptedEvent(what="answer"),
    ev.AudioGapEvent(source="mic", t_start_s=0.0, t_end_s=1.0),
    ev.ErrorEvent(code="error", message="it broke", hint="mend it"),
    ev.StatsEvent(**STATS),
    ev.SummaryEvent(
        **STATS, first_result_s=None, duration_s=1.0, captured=3, processed=1,
        dropped={"paced": 2}, in_flight=0, audio_s=0.0, audio_gaps=0, reconnects=0,
    ),
]  # fmt: skip


def valid(document: dict, *, closed: bool = True) -> bool:
    schema = event_schema(closed=closed)
    return jsonschema.Draft202012Validator(schema).is_valid(document)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(event_schema())


def test_every_type_has_an_example():
    assert {type(example) for example in EXAMPLES} == set(ev.EVENT_TYPES.values())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_json_validates(event):
    document = json.loads(json.dumps(ev.to_json(event)))
    assert valid(document)
    assert list(document)[:3] == ["type", "id", "t_s"]
    assert ("source" in document) == (event.source is not None)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_a_missing_field_is_refused(event):
    document = ev.to_json(event)
    for name in set(document) - {"source"}:
        assert not valid({k: v for k, v in document.items() if k != name}), name


def test_unknown_fields_pass_a_reader_and_not_a_writer():
    document = {**ev.to_json(EXAMPLES[5]), "later": 1}
    assert valid(document, closed=False)
    assert not valid(document)


def test_wrong_values_are_refused():
    speech = ev.to_json(EXAMPLES[5])
    assert not valid({**speech, "edge": "middle"})
    assert not valid({**speech, "utterance": "0"})
    assert not valid({**speech, "type": "sound"})


def test_numbers_are_rounded_to_what_they_mean():
    labels = ev.to_json(EXAMPLES[2])
    assert labels["labels"] == [{"label": "cat", "score": 0.9123}]
    assert labels["t_capture_s"] == 1.2346
    assert labels["model_ms"] == 12.35
    stats = ev.to_json(EXAMPLES[13])
    assert stats["latency_ms"]["p50"] == 1.23
    assert (stats["fps"], stats["rss_mb"]) == (29.97, 101.3)


# The contract of the command line, word for word: fields may be added, never renamed.
FROZEN = {
    "started": "schema_version bundle config wall_offset_s runtime precision",
    "status": "state reason",
    "labels": "labels frame t_capture_s model_ms latency_ms",
    "caption": "text confidence frames t_capture_s model_ms latency_ms",
    "detections": "objects frame t_capture_s model_ms latency_ms",
    "speech": "edge utterance",
    "transcript": "utterance text final stable_chars t_start_s t_end_s latency_ms",
    "answer_delta": "question_id question text frames t_capture_s ttft_ms model_ms latency_ms",
    "answer": "question_id question text frames t_capture_s ttft_ms model_ms latency_ms",
    "description": "text t_start_s t_end_s frames",
    "interrupted": "what",
    "audio_gap": "t_start_s t_end_s",
    "error": "code message hint",
    "stats": "sources fps latency_ms overhead_ms stages_ms rss_mb",
    "summary": "sources fps latency_ms overhead_ms stages_ms rss_mb first_result_s duration_s"
    " captured processed dropped in_flight audio_s audio_gaps reconnects",
}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.type)
def test_frozen_names(event):
    assert set(FROZEN[event.type].split()) | {"type", "id", "t_s"} <= set(ev.to_json(event))
