"""The default bundle on the sample clip, played as a camera and a microphone."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jsonschema
import pytest

from edgemm.errors import BundleError
from edgemm.live.event_schema import event_schema
from edgemm.live.events import to_json
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.video import VideoSink
from tests.live.live_fakes import KeepSink

CLIP = Path(__file__).parents[2] / "samples" / "clip" / "clip.mp4"
SAID = (
    "he might even have been made amiable himself",
    "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "had he married a more amiable woman he might have been made still more respectable than he was",
)
SPOKEN_S = ((0.6, 3.9), (4.6, 9.9), (10.6, 16.7))


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower().replace("-", " ")).split()


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    import edgemm

    try:
        model = edgemm.load()
    except BundleError as error:
        pytest.skip(str(error))
    keep = KeepSink()
    video = VideoSink(tmp_path_factory.mktemp("clip") / "out.mp4")
    summary = Pipeline(model, StreamOptions(cameras=(str(CLIP),)), [keep, video]).run()
    return keep, summary


def test_it_hears_what_was_said_and_when(played):
    keep, _ = played
    transcripts = [event for event in keep.of("transcript") if event.final]
    assert [words(event.text) for event in transcripts] == [text.split() for text in SAID]
    start_s = keep.of("labels")[0].t_capture_s
    for event, (begin_s, end_s) in zip(transcripts, SPOKEN_S, strict=True):
        assert event.t_start_s - start_s == pytest.approx(begin_s, abs=0.5)
        assert event.t_end_s - start_s == pytest.approx(end_s, abs=0.5)
        assert event.latency_ms < 2000


def test_partials_come_while_it_is_said_and_keep_what_was_stable(played):
    keep, _ = played
    partials = [event for event in keep.of("transcript") if not event.final]
    assert partials
    for before, after in itertools.pairwise(partials):
        if before.utterance == after.utterance:
            assert after.text.startswith(before.text[: before.stable_chars])
            assert after.t_end_s > before.t_end_s
    first = min(event.id for event in keep.of("transcript") if event.final)
    assert partials[0].id < first


def test_it_sees_a_cup_and_a_cat(played):
    keep, _ = played
    firsts = {event.labels[0].label for event in keep.of("labels")}
    assert any("espresso" in label for label in firsts)
    assert any("cat" in label or "Mau" in label for label in firsts)
    assert not keep.of("error")


def test_the_figures_hold(played):
    keep, summary = played
    assert summary.overhead_ms.p50 <= 5.0
    assert summary.overhead_ms.p99 <= 20.0
    assert summary.first_result_s <= 1.0
    assert summary.captured == summary.processed + sum(summary.dropped.values()) == 430
    validator = jsonschema.Draft202012Validator(event_schema(closed=True))
    for event in keep.events:
        validator.validate(to_json(event))
