"""Objects in the live pipeline: their numbers, their events, and their frames in the picture."""

from __future__ import annotations

import dataclasses
import json
import time

import jsonschema
import numpy as np
import pytest

from edgemm.live.event_schema import event_schema
from edgemm.live.events import AnswerEvent, CaptionEvent, DetectionsEvent, LabelsEvent, TrackedObject, to_json
from edgemm.live.frames import Frame
from edgemm.live.options import StreamOptions
from edgemm.live.overlay import Overlay, Results
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.text import TextSink
from edgemm.live.tracking import Tracker
from edgemm.results import DetectedObject, Detections, Label
from tests.live.live_fakes import FakeModel, KeepSink


class BarModel(FakeModel):
    """Finds the bright bar of the clips by its columns."""

    tasks = ("detect",)

    def detect(self, image, *, score_min=0.5):
        began = time.perf_counter()
        self.score_min = score_min
        bright = np.flatnonzero((image.min(2) > 190).mean(0) > 0.9)
        objects = ()
        if len(bright):
            box = (float(bright[0]), 0.0, float(bright[-1] + 1), float(image.shape[0]))
            objects = (DetectedObject("bar", 0.9, box), DetectedObject("ground", 0.6, (0.0, 0.0, 320.0, 240.0)))
        return Detections(tuple(o for o in objects if o.score > score_min), 1e3 * (time.perf_counter() - began))


def box(x, y, side=20, label="cup", score=0.9):
    return DetectedObject(label, score, (float(x), float(y), float(x + side), float(y + side)))


def test_objects_keep_their_numbers_while_they_move_and_change_places():
    tracker = Tracker()
    assert tracker.update([box(0, 0), box(60, 0)]) == (0, 1)
    assert tracker.update([box(56, 2), box(4, 1)]) == (1, 0)
    assert tracker.update([box(52, 4), box(8, 2), box(100, 100)]) == (1, 0, 2)


def test_the_best_overlap_is_matched_first():
    tracker = Tracker()
    assert tracker.update([box(0, 0), box(8, 0)]) == (0, 1)
    assert tracker.update([box(7, 0), box(1, 0)]) == (1, 0)


def test_a_label_is_part_of_what_an_object_is():
    tracker = Tracker()
    assert tracker.update([box(0, 0)]) == (0,)
    assert tracker.update([box(0, 0, label="hand")]) == (1,)
    assert tracker.update([box(0, 0), box(0, 0, label="hand")]) == (0, 1)


def test_a_number_waits_for_its_object_and_is_never_reused():
    tracker = Tracker(patience=2)
    assert tracker.update([box(0, 0)]) == (0,)
    tracker.update([])
    tracker.update([])
    assert tracker.update([box(1, 0)]) == (0,)
    for _ in range(3):
        tracker.update([])
    assert tracker.update([box(1, 0)]) == (1,)


def run(model, clip, **options):
    sink = KeepSink()
    Pipeline(model, StreamOptions(cameras=(str(clip),), as_fast_as_possible=True, **options), [sink]).run()
    return sink


def test_a_clip_gives_detections_with_numbers(silent_clip):
    model = BarModel()
    events = run(model, silent_clip, max_frames=30).of("detections")
    assert len(events) == 30
    assert model.score_min == 0.5
    # The bar moves by 7 px a frame and is 20 px wide: it keeps its number until it jumps back to the left.
    bars = [item for event in events for item in event.objects if item.label == "bar"]
    assert {item.track_id for item in bars[:30]} == {bars[0].track_id}
    assert bars[1].box_px[0] - bars[0].box_px[0] == pytest.approx(7, abs=2)
    for event in events:
        document = json.loads(json.dumps(to_json(event)))
        jsonschema.validate(document, event_schema(closed=True))
        assert set(document["objects"][0]) == {"label", "score", "box_px", "track_id"}
        assert {"frame", "t_capture_s", "model_ms", "latency_ms"} <= set(document)


def test_score_and_labels_are_asked_for(silent_clip):
    model = BarModel()
    events = run(model, silent_clip, max_frames=5, score_min=0.7).of("detections")
    assert model.score_min == 0.7
    assert [[o.label for o in e.objects] for e in events] == [["bar"]] * 5
    events = run(BarModel(), silent_clip, max_frames=5, labels=("ground",)).of("detections")
    assert [[o.label for o in e.objects] for e in events] == [["ground"]] * 5


def test_a_detector_that_fails_does_not_end_the_run(silent_clip):
    class Cursed(BarModel):
        def detect(self, image, *, score_min=0.5):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("the picture is cursed")
            return super().detect(image, score_min=score_min)

    sink = run(Cursed(), silent_clip, max_frames=5)
    assert len(sink.of("detections")) == 5
    assert len(sink.of("error")) == 1
    (summary,) = sink.of("summary")
    assert summary.captured == summary.processed + sum(summary.dropped.values()) + summary.in_flight
    assert summary.stages_ms["detect"].p50 is not None


def event(*objects, t_s=0.0):
    return DetectionsEvent(
        source="camera", objects=objects, frame=0, t_capture_s=t_s, model_ms=1.0, latency_ms=2.0, t_s=t_s
    )


def test_frames_are_drawn_around_objects():
    image = np.full((240, 320, 3), 60, np.uint8)
    frame = Frame(0, "camera", image, 0.0)
    results = Results()
    plain = Overlay().draw(frame, results)
    results.update(event(TrackedObject("cup", 0.9, (100.0, 80.0, 200.0, 180.0), 0)))
    drawn = Overlay().draw(frame, results)
    changed = (drawn != plain).any(2)
    assert changed[80:181, 100].all()
    assert changed[80:181, 200].all()
    assert changed[180, 100:201].all()
    assert not changed[120:170, 130:190].any()
    assert (image == 60).all()


def test_the_caption_of_its_camera_is_drawn_below_until_there_is_an_answer():
    frame = Frame(0, "camera.1", np.full((240, 320, 3), 60, np.uint8), 0.0)
    caption = CaptionEvent(
        source="camera.1", text="a cup", confidence=None, frames=(0,), t_capture_s=0.0, model_ms=1.0, latency_ms=2.0
    )
    results = Results()
    results.update(dataclasses.replace(caption, source="camera.0"))
    assert (Overlay().draw(frame, results) == 60).all()
    results.update(caption)
    changed = (Overlay().draw(frame, results) != 60).any(2)
    assert changed[160:].any()
    assert not changed[:160].any()
    results.update(AnswerEvent(
        question_id=0, question="what?", text="a cup", frames=(0,), t_capture_s=0.0, ttft_ms=1.0, model_ms=1.0,
        latency_ms=2.0,
    ))  # fmt: skip
    answered = Overlay().draw(frame, results)
    results.captions.clear()
    assert (Overlay().draw(frame, results) == answered).all()


@pytest.mark.parametrize("corners", [(-50, -50, 5, 5), (300, 230, 400, 300), (0, 0, 320, 240), (10, 10, 10, 10)])
def test_boxes_over_the_edge_are_drawn(corners):
    results = Results()
    results.update(event(TrackedObject("a rather long name", 0.51, tuple(map(float, corners)), None)))
    drawn = Overlay().draw(Frame(0, "camera", np.full((240, 320, 3), 60, np.uint8), 0.0), results)
    assert drawn.shape == (240, 320, 3)
    assert (drawn != 60).any()


def test_lines_for_people_tell_what_changes(capsys):
    import sys

    sink = TextSink(sys.stdout)
    cup, dog = (TrackedObject(n, 0.9, (0.0, 0.0, 9.0, 9.0), 0) for n in ("cup", "dog"))
    for second, objects in enumerate([(cup,), (cup,), (dog, cup, cup), ()]):
        sink.handle(event(*objects, t_s=float(second)))
    said = [line.split("finds")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert said == ["cup", "2 cup, dog", "nothing"]


def test_a_caption_that_stays_is_told_once_and_labels_keep_quiet(capsys):
    import sys

    sink = TextSink(sys.stdout)
    told = {"source": "camera", "t_capture_s": 0.0, "model_ms": 1.0, "latency_ms": 1.0}
    for t_s, text in enumerate(["a cup", "a cup", "a dog", "a dog", "a cup"]):
        caption = CaptionEvent(**told, id=t_s, t_s=float(t_s), text=text, confidence=0.9, frames=(t_s,))
        labels = LabelsEvent(**told, id=t_s, t_s=float(t_s), labels=(Label(text, 0.9),), frame=t_s)
        sink.handle(caption)
        sink.handle(labels)
    said = [line.split("sees")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert said == ["a cup", "a dog", "a cup"]
