"""Whole runs of the pipeline on files made on the spot, with a tiny model."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import jsonschema
import pytest

from edgemm.errors import SourceError, StorageError, TaskUnavailable, UsageError
from edgemm.live.event_schema import event_schema
from edgemm.live.events import LabelsEvent, StatsEvent, SummaryEvent, TranscriptEvent, to_json
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkLimits
from edgemm.live.sinks.picture import PictureSink
from edgemm.live.sinks.recording import McapSink
from edgemm.live.sinks.video import VideoSink
from edgemm.results import Caption, Description
from tests.live.live_fakes import FakeModel, KeepSink


def run(model, sinks=(), **options):
    keep = KeepSink()
    summary = Pipeline(model, StreamOptions(**options), [keep, *sinks]).run()
    return keep, summary


def balanced(item):
    return item.captured == item.processed + sum(item.dropped.values()) + item.in_flight


def edgemm_threads():
    return {t.name for t in threading.enumerate() if t.name.startswith("edgemm")}


@pytest.fixture(scope="module")
def played(talking_clip):
    """One run at the camera's pace, with a question, recorded in full."""
    path = talking_clip.parent
    recorders = [
        VideoSink(path / "out.mp4"),
        McapSink(path / "out.mcap"),
        PictureSink(path / "o.png"),
    ]
    model = FakeModel(work_s=0.005)
    keep, summary = run(model, recorders, cameras=(str(talking_clip),), ask=("where?",), stats_every_s=0.2)
    return model, keep, summary


def test_every_line_validates(played):
    _, keep, _ = played
    validator = jsonschema.Draft202012Validator(event_schema(closed=True))
    for event in keep.events:
        validator.validate(to_json(event))


def test_order_and_ids(played):
    _, keep, summary = played
    assert keep.events[0].type == "started"
    assert keep.events[-1] == summary
    assert [event.id for event in keep.events] == list(range(len(keep.events)))
    times = [event.t_s for event in keep.events]
    assert times == sorted(times)


def test_only_some_labels_and_a_language(talking_clip):
    keep, _ = run(
        FakeModel(),
        cameras=(str(talking_clip),),
        as_fast_as_possible=True,
        labels=("blue", "red"),
        top=1,
        language="de",
    )
    labels = [e.labels for e in keep.events if isinstance(e, LabelsEvent)]
    assert labels
    assert all(len(told) == 1 and told[0].label in ("blue", "red") for told in labels)
    texts = [e.text for e in keep.events if isinstance(e, TranscriptEvent) and e.final]
    assert texts
    assert all(text.endswith("of sound in de") for text in texts)


def test_what_it_is_made_of_is_said_first(played):
    model, keep, _ = played
    started = keep.events[0]
    assert (started.bundle, started.schema_version) == ("fake", 1)
    assert abs(started.wall_offset_s - time.time()) < 600
    assert started.config["tasks"] == ["classify", "answer", "transcribe"]
    assert model.warmed == ("classify", "answer", "transcribe")


def test_accounts_are_exact_in_every_stats(played):
    _, keep, summary = played
    stats = [event for event in keep.events if isinstance(event, StatsEvent)]
    assert len(stats) >= 12
    for event in stats:
        assert all(balanced(source) for source in event.sources.values())
    assert balanced(summary)
    assert summary.captured == 90
    assert summary.in_flight == 0
    assert summary.audio_s == pytest.approx(3.0, abs=0.1)


def test_overhead(played):
    _, keep, summary = played
    assert summary.processed > 80
    assert summary.overhead_ms.p50 <= 5.0
    assert summary.overhead_ms.p99 <= 20.0
    for event in keep.of("labels"):
        assert event.latency_ms >= event.model_ms
        assert event.t_s - event.t_capture_s == pytest.approx(event.latency_ms / 1e3, abs=0.005)


def test_first_result(played):
    _, _, summary = played
    assert 0 < summary.first_result_s < 1.0


def test_speech_becomes_utterances(played):
    _, keep, _ = played
    edges = [(event.edge, event.utterance) for event in keep.of("speech")]
    assert edges == [("start", 0), ("end", 0), ("start", 1), ("end", 1)]
    first, second = [e for e in keep.events if isinstance(e, TranscriptEvent) and e.final]
    labels = next(event for event in keep.events if isinstance(event, LabelsEvent))
    start_s = labels.t_capture_s  # the clip's own time 0
    assert first.t_start_s - start_s == pytest.approx(0.3 - 0.25, abs=0.1)
    assert first.t_end_s - start_s == pytest.approx(0.9 + 0.2, abs=0.1)
    assert second.t_start_s - start_s == pytest.approx(1.7 - 0.25, abs=0.1)
    assert first.text == f"{first.t_end_s - first.t_start_s:.1f} seconds of sound"
    assert 250 < first.latency_ms < 600  # endpoint less padding, and the model


def test_a_question_is_answered_over_a_frame(played):
    _, keep, _ = played
    (answer,) = keep.of("answer")
    deltas = keep.of("answer_delta")
    assert "".join(delta.text for delta in deltas) == answer.text == "it is here"
    assert answer.frames == (0,)
    assert {delta.question_id for delta in deltas} == {answer.question_id} == {0}


def test_inference_has_one_thread(played):
    model, _, _ = played
    assert model.threads == {"edgemm-vision"}


def test_nothing_is_left_running(played):
    deadline = time.monotonic() + 1.0
    while edgemm_threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not edgemm_threads()


def test_as_fast_as_possible_drops_nothing(talking_clip):
    began = time.monotonic()
    keep, summary = run(FakeModel(work_s=0.002), cameras=(str(talking_clip),),
                        as_fast_as_possible=True)  # fmt: skip
    assert time.monotonic() - began < 2.5  # the clip is 3 s
    assert (summary.captured, summary.processed, summary.dropped) == (90, 90, {})
    assert [event.frame for event in keep.of("labels")] == list(range(90))
    assert [event.utterance for event in keep.of("transcript")] == [0, 1]
    assert all(event.latency_ms >= 0 for event in keep.of("transcript"))


class Curious(FakeModel):
    """Hears questions."""

    def transcribe(self, samples, **given):
        return replace(super().transcribe(samples, **given), text="Where is it?")


def test_what_is_asked_aloud_is_answered(talking_clip):
    keep, _ = run(Curious(), cameras=(str(talking_clip),), as_fast_as_possible=True)
    asked = [event.question for event in keep.of("answer")]
    assert asked
    assert set(asked) == {"Where is it?"}


def test_captions_and_descriptions(silent_clip):
    class Narrates(FakeModel):
        tasks = ("caption", "describe")

        def caption(self, image, *, max_new_tokens=64):
            return Caption("a square", (1,), 0.9, 1.0)

        def describe(self, frames, times_s, *, max_new_tokens=64):
            assert len(frames) == len(times_s)
            return Description(f"{len(frames)} frames", (1,), 0.9, 1.0)

    options = {"cameras": (str(silent_clip),), "as_fast_as_possible": True, "window": 3, "window_fps": 2.0}
    keep, _ = run(Narrates(), **options)
    assert keep.of("caption")
    assert not keep.of("description")
    keep, summary = run(Narrates(), tasks=("caption", "describe"), **options)
    assert [event.frames for event in keep.of("caption")] == [(i,) for i in range(summary.captured)]
    told = keep.of("description")
    assert [event.text for event in told][:3] == ["2 frames", "3 frames", "3 frames"]
    assert all(
        event.t_end_s - event.t_start_s == pytest.approx((len(event.frames) - 1) / 2, abs=0.05) for event in told
    )
    keep, summary = run(Narrates(), tasks=("describe",), **options)
    assert summary.processed == len(keep.of("description")) + 1
    assert set(summary.dropped) == {"paced"}


def test_a_slow_model_sees_the_newest_frame(silent_clip):
    keep, summary = run(FakeModel(work_s=0.1), cameras=(str(silent_clip),))
    assert summary.captured == 60
    assert 14 <= summary.processed <= 22
    assert summary.dropped["superseded"] > 30
    assert set(summary.dropped) <= {"superseded", "stale"}
    ages = sorted(event.latency_ms - event.model_ms for event in keep.of("labels"))
    assert ages[len(ages) * 3 // 4] < 20  # half of a frame's interval and a little
    assert ages[-1] < 100


def test_pacing(silent_clip):
    _, summary = run(FakeModel(), cameras=(str(silent_clip),), every_s=0.5)
    assert summary.processed == 4
    assert summary.dropped.get("paced", 0) >= 50
    assert balanced(summary)


def test_frames_that_no_task_wants_are_gated(silent_clip):
    _, summary = run(
        FakeModel(), cameras=(str(silent_clip),), tasks=("answer",), ask=("what?",),
        as_fast_as_possible=True,
    )  # fmt: skip
    assert summary.processed == 1
    assert summary.dropped == {"gated": 59}


def test_max_frames_and_duration(silent_clip):
    _, summary = run(FakeModel(), cameras=(str(silent_clip),), max_frames=7)
    assert summary.processed == 7
    assert summary.in_flight == 0
    _, summary = run(FakeModel(), cameras=("test://",), duration_s=0.5)
    assert summary.duration_s == pytest.approx(0.5, abs=0.3)
    _, summary = run(FakeModel(), cameras=(str(silent_clip),), duration_s=1.0, as_fast_as_possible=True)
    assert summary.processed == 30


def test_two_cameras_share_the_model(silent_clip, talking_clip):
    keep, summary = run(FakeModel(work_s=0.005), cameras=(str(silent_clip), str(talking_clip)))
    assert set(summary.sources) == {"camera.0", "camera.1"}
    assert all(item.processed > 40 for item in summary.sources.values())
    assert all(balanced(item) for item in summary.sources.values())
    assert {event.source for event in keep.of("labels")} == {"camera.0", "camera.1"}


def test_a_raising_task_is_an_event_and_the_run_goes_on(silent_clip):
    model = FakeModel()
    model.fail_on = {5, 6}
    keep, summary = run(model, cameras=(str(silent_clip),), as_fast_as_possible=True)
    (error,) = keep.of("error")  # the second one, at once after the first, is not repeated
    assert "the picture is cursed" in error.message
    assert error.source == "camera"
    assert (summary.processed, summary.dropped) == (58, {"stale": 2})


def test_a_slow_sink_slows_nothing(silent_clip):
    slow = KeepSink(SinkLimits(events=5, frames=2), wait_s=0.2)
    slow.name = "slow"
    _, summary = run(FakeModel(), [slow], cameras=(str(silent_clip),))
    assert summary.processed > 55
    assert summary.overhead_ms.p99 <= 20.0
    assert summary.sinks_dropped["slow"] > 30
    assert slow.items[-1].type == "summary"
    assert slow.closed


class BrokenSink(KeepSink):
    def handle(self, item):
        raise OSError(28, "No space left on device")


def test_a_broken_sink_is_an_event(silent_clip):
    broken = BrokenSink()
    broken.name = "broken"
    keep, summary = run(FakeModel(), [broken], cameras=(str(silent_clip),), max_frames=10)
    (error,) = keep.of("error")
    assert error.code == "storage"
    assert "No space left" in error.message
    assert broken.closed
    assert summary.processed == 10


def test_a_broken_recording_ends_the_run(silent_clip):
    broken = BrokenSink()
    broken.name, broken.essential = "broken", True
    with pytest.raises(StorageError, match="No space left"):
        run(FakeModel(), [broken], cameras=(str(silent_clip),))


@pytest.mark.parametrize("text", [None, "hello, I am no video\n" * 40])
def test_a_source_that_cannot_be_opened(tmp_path, text):
    path = tmp_path / "no.mp4"
    if text is not None:
        path.write_text(text)
    out = tmp_path / "out.mp4"
    sinks = [VideoSink(out), McapSink(tmp_path / "out.mcap"), PictureSink(tmp_path / "out.png")]
    with pytest.raises(SourceError, match=r"no\.mp4"):
        run(FakeModel(), sinks, cameras=(str(path),))
    assert sorted(p.name for p in tmp_path.iterdir()) == (["no.mp4"] if text else [])
    time.sleep(0.3)
    assert not edgemm_threads()


def test_nothing_to_do_is_said_at_once(silent_clip):
    clip = str(silent_clip)
    with pytest.raises(UsageError, match="neither"):
        Pipeline(FakeModel(), StreamOptions(cameras=("none",), mic="none"))
    with pytest.raises(TaskUnavailable, match="transcribe"):
        Pipeline(FakeModel(tasks=["classify"]), StreamOptions((clip,), tasks=("transcribe",)))
    with pytest.raises(TaskUnavailable, match="questions"):
        Pipeline(FakeModel(tasks=["classify"]), StreamOptions((clip,), ask=("what?",)))
    with pytest.raises(UsageError, match="no live task"):
        StreamOptions((clip,), tasks=("sing",))


def test_stop_within_a_second_while_everything_hangs(silent_clip):
    model = FakeModel(work_s=5.0)
    slow = KeepSink(wait_s=5.0)
    pipeline = Pipeline(model, StreamOptions(cameras=("test://",), mic="test://"), [slow])
    pipeline.start()
    time.sleep(0.5)
    began = time.monotonic()
    pipeline.stop()
    assert time.monotonic() - began <= 1.0
    assert pipeline.over
    assert isinstance(pipeline.wait(), SummaryEvent)


def test_stop_interrupts_an_answer():
    keep = KeepSink()
    options = StreamOptions(cameras=("test://",), ask=("long?",), tasks=("answer",))
    pipeline = Pipeline(FakeModel(work_s=0.15), options, [keep])
    pipeline.start()
    while not keep.of("answer_delta"):
        time.sleep(0.01)
    pipeline.stop()
    assert [event.what for event in keep.of("interrupted")] == ["answer"]
    assert keep.events[-1].type == "summary"


class Captioning(FakeModel):
    """Takes 30 ms to caption a picture that it has classified."""

    def caption(self, image, *, max_new_tokens=64):
        began = time.perf_counter()
        time.sleep(0.03)
        return Caption("a picture", (1,), 0.9, 1e3 * (time.perf_counter() - began))


def test_overhead_is_not_what_another_task_took():
    model = Captioning(work_s=0.03, tasks=("classify", "caption"))
    keep, summary = run(model, cameras=("test://?fps=5",), max_frames=6)
    assert len(keep.of("labels")) == len(keep.of("caption")) == 6
    waited = [caption.latency_ms - caption.model_ms for caption in keep.of("caption")]
    assert min(waited) >= 30, "the caption waits for the labels"
    assert summary.overhead_ms.p50 <= 5.0
