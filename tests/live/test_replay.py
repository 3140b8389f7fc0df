"""A recorded run, run again: the same frames for the same tasks at the same times, and the same results."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from edgemm.errors import BundleError, SourceError
from edgemm.live.events import Event
from edgemm.live.foxglove import IMAGE, VIDEO
from edgemm.live.mcap_file import FRAME, McapRecorder, outcome_of, read_messages
from edgemm.live.options import SOUND_TASKS, VISION_TASKS, StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.recording import record
from edgemm.live.replay import is_run
from edgemm.live.sinks.recording import McapSink
from edgemm.results import Answer, Caption, Description, DetectedObject, Detections, Label, Labels, Transcript
from tests.live.live_fakes import FakeModel, KeepSink, moving_frames, speech_like, write_video
from tests.rig.mjpeg_camera import MjpegCamera

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "samples" / "clip" / "clip.mp4"
RESULTS = ("labels", "detections", "caption", "description", "answer", "transcript")
OF_THE_MOMENT = {"id", "t_s", "model_ms", "latency_ms", "ttft_ms"}


def mark(*arrays: np.ndarray) -> str:
    """Another word for everything that differs in a bit."""
    return hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=6).hexdigest()


class Exact(FakeModel):
    """Says exactly what it was given."""

    tasks = ("classify", "detect", "caption", "describe", "answer", "transcribe", "voice_activity")

    def classify(self, image: np.ndarray, *, top: int = 5) -> Labels:
        time.sleep(self.work_s)
        if int(image[0, 0, 0]) in self.fail_on:
            raise RuntimeError("the picture is cursed")
        return Labels((Label(mark(image), 1.0),), 1.0)

    def detect(self, image: np.ndarray, *, score_min: float = 0.5) -> Detections:
        x = float(image[image.shape[0] // 2, :, 0].argmax())
        return Detections((DetectedObject(mark(image)[:1], 0.9, (x, 0.0, x + 20, 9.0)),), 1.0)

    def caption(self, image: np.ndarray, *, max_new_tokens: int = 64) -> Caption:
        return Caption(mark(image), (1,), 0.9, 1.0)

    def describe(self, frames, times_s, *, max_new_tokens: int = 64) -> Description:  # type: ignore[no-untyped-def]
        return Description(mark(*frames, np.array(times_s) - times_s[0]), (1,), 0.9, 1.0)

    def answer(self, frames, question, *, max_new_tokens=64, on_text=None) -> Answer:  # type: ignore[no-untyped-def]
        return Answer(f"{question} {mark(*frames)}", (1,), 0.9, 1.0, 1.0)

    def transcribe(
        self, samples: np.ndarray, *, sample_rate_hz: int = 16_000, language: str | None = None
    ) -> Transcript:
        return Transcript(mark(samples) + ("?" if len(samples) < 20_000 else ""), (1,), 0.9, (), 1.0)


def results(keep: KeepSink) -> list[dict]:
    """What was said, without what the moment makes of it; partials come as the machine has time."""
    told = [event for event in keep.events if event.type in RESULTS and getattr(event, "final", True)]
    plain = [{"type": e.type} | {k: v for k, v in vars(e).items() if k not in OF_THE_MOMENT} for e in told]
    return sorted(
        plain, key=lambda e: (RESULTS.index(e["type"]), e["source"], e.get("t_capture_s", e.get("t_start_s")))
    )


def speech(keep: KeepSink) -> list[tuple[str, int]]:
    return [(event.edge, event.utterance) for event in keep.of("speech")]  # type: ignore[attr-defined]


def run(model: FakeModel, sinks=(), **options):  # type: ignore[no-untyped-def]
    keep = KeepSink()
    summary = Pipeline(model, StreamOptions(**options), [keep, *sinks]).run()
    return keep, summary


def recorded(path: Path, model: FakeModel, **options):  # type: ignore[no-untyped-def]
    """Every task of the model is done, `describe` too."""
    options.setdefault("tasks", tuple(task for task in VISION_TASKS + SOUND_TASKS if task in model.tasks))
    return run(model, [McapSink(path)], **options)


def same(first, again) -> None:  # type: ignore[no-untyped-def]
    """Results and books."""
    (keep, summary), (keep_again, summary_again) = first, again
    assert results(keep)
    assert results(keep_again) == results(keep)
    assert speech(keep_again) == speech(keep)
    assert (summary_again.captured, summary_again.processed) == (summary.captured, summary.processed)
    assert summary_again.dropped == summary.dropped
    assert summary_again.audio_s == pytest.approx(summary.audio_s, abs=1e-6)
    for stats in (*keep_again.of("stats"), summary_again):
        for books in stats.sources.values():  # type: ignore[attr-defined]
            assert books.captured == books.processed + sum(books.dropped.values()) + books.in_flight


def test_a_model_slower_than_the_camera_skips_the_same_frames(talking_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    first = recorded(path, Exact(work_s=0.08), cameras=(str(talking_clip),), window=3, window_fps=2.0)
    assert first[1].dropped["superseded"] > 20
    assert {m.schema for m in read_messages(path, (VIDEO, IMAGE))} == {VIDEO}
    assert is_run(str(path))
    again = run(Exact(), cameras=(str(path),), window=3, window_fps=2.0)
    same(first, again)
    began, over = first[0].of("started")[0], first[0].events[-1]
    began_again, over_again = again[0].of("started")[0], again[0].events[-1]
    assert began_again.wall_offset_s == began.wall_offset_s  # type: ignore[attr-defined]
    assert over_again.t_s == pytest.approx(over.t_s, abs=1.0)
    assert all(e.t_s >= e.t_capture_s for e in again[0].of("labels"))  # type: ignore[attr-defined]
    same(first, run(Exact(), cameras=(str(path),), as_fast_as_possible=True))


def test_at_a_pace(silent_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    options = {"tasks": ("classify", "detect", "caption"), "every_s": 0.3}
    first = recorded(path, Exact(), cameras=(str(silent_clip),), **options)
    assert first[1].processed == 7
    same(first, run(Exact(), cameras=(str(path),), as_fast_as_possible=True, **options))
    same(first, run(Exact(), cameras=(str(path),), as_fast_as_possible=True))


def test_pixels_of_a_slow_camera_at_another_size(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    model = Exact(work_s=0.05, tasks=("classify",))
    first = recorded(path, model, cameras=("test://?size=320x240&seconds=1.2",), every_s=0.2)
    formats = Counter(m.body["format"] for m in read_messages(path, (IMAGE,)))
    assert formats["png"] == first[1].processed
    assert formats["jpeg"] > 0, "the others are kept too, but not exactly"
    same(first, run(model, cameras=(str(path),)))


def test_pictures_out_of_order_and_scaled(tmp_path: Path) -> None:
    clip, path = tmp_path / "b.mp4", tmp_path / "run.mcap"
    noise = np.random.default_rng(0).integers(0, 60, (90, 240, 320, 3), np.uint8)
    with av.open(str(clip), "w") as container:
        video = container.add_stream(
            "libx264", rate=30, options={"x264-params": "bframes=3:b-adapt=0:keyint=25:scenecut=0"}
        )
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        for image, grain in zip(moving_frames(90), noise, strict=True):
            container.mux(video.encode(av.VideoFrame.from_ndarray(image // 2 + grain, format="rgb24")))
        container.mux(video.encode(None))
    model = Exact(work_s=0.02, tasks=("classify",))
    first = recorded(path, model, cameras=(str(clip),), size_px=(200, 150))
    packets = [m.body["packet"] for m in read_messages(path, (VIDEO,))]
    shown = [outcome_of(m).origin[0] for m in read_messages(path, (FRAME,))]  # type: ignore[index]
    assert packets == list(range(90))
    assert sorted(shown) != shown, "there are no pictures out of order in it"
    same(first, run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True))


def test_an_mjpeg_camera(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    model = Exact(work_s=0.06, tasks=("classify",))
    with MjpegCamera() as camera:
        first = recorded(path, model, cameras=(camera.url,), duration_s=1.5)
    assert {m.body["format"] for m in read_messages(path, (IMAGE,))} == {"jpeg"}
    again = run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True)
    assert results(again[0]) == results(first[0])
    assert again[1].processed == first[1].processed > 8


def test_questions_are_answered_over_the_same_frames(talking_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    tasks = ("answer", "transcribe")
    first = recorded(path, Exact(), cameras=(str(talking_clip),), tasks=tasks, ask=("where?",))
    assert len(first[0].of("answer")) > 1, "what is said ends with a question mark"
    same(first, run(Exact(), cameras=(str(path),), tasks=tasks, ask=("where?",)))
    keep, _ = run(Exact(), cameras=(str(path),), as_fast_as_possible=True, tasks=tasks, ask=("and now?",))
    answers = keep.of("answer")
    assert len(answers) == len(first[0].of("answer")) + 1
    assert len({answer.question_id for answer in answers}) == len(answers)  # type: ignore[attr-defined]


def test_two_cameras_and_a_picture_that_raises(silent_clip: Path, talking_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    model = Exact(work_s=0.01)
    model.fail_on = set(range(256))
    options = {"tasks": ("classify", "detect"), "mic": "none"}
    first = recorded(path, model, cameras=(str(silent_clip), str(talking_clip)), **options)
    assert first[0].of("error")
    again = run(model, cameras=(str(path),), as_fast_as_possible=True, **options)
    same(first, again)
    assert set(again[1].sources) == {"camera.0", "camera.1"}
    assert [e.message for e in again[0].of("error")][:1] == [e.message for e in first[0].of("error")][:1]


def test_other_tasks_see_what_was_looked_at(silent_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    keep, _ = recorded(path, Exact(), cameras=(str(silent_clip),), tasks=("classify",), every_s=0.2)
    again, _ = run(Exact(), cameras=(str(path),), tasks=("caption",), as_fast_as_possible=True)
    assert [e.frames for e in again.of("caption")] == [(e.frame,) for e in keep.of("labels")]  # type: ignore[attr-defined]


def test_sound_alone_with_a_split_utterance(tmp_path: Path) -> None:
    class Slow(Exact):
        def transcribe(self, samples, **given):  # type: ignore[no-untyped-def]
            time.sleep(0.35 * len(samples) / 16_000 if len(samples) > 8_000 else 0.005)
            return super().transcribe(samples, **given)

    clip, path = tmp_path / "long.mp4", tmp_path / "run.mcap"
    write_video(clip, moving_frames(30), sound=speech_like(6.0, [(0.3, 5.2)]))
    first = recorded(path, Slow(), mic=str(clip))
    assert len(first[0].of("transcript")) >= 2
    assert len(speech(first[0])) >= 4, "it was not split"
    same(first, run(Exact(), mic=str(path)))
    same(first, run(Exact(), mic=str(path), as_fast_as_possible=True))


def test_torn_anywhere_it_replays_what_it_holds(talking_clip: Path, tmp_path: Path) -> None:
    path, torn = tmp_path / "run.mcap", tmp_path / "torn.mcap"
    keep, _ = recorded(path, Exact(work_s=0.03, tasks=("classify",)), cameras=(str(talking_clip),))
    whole, data = results(keep), path.read_bytes()
    held = []
    for share in (0.4, 0.6, 0.8, 0.97):
        torn.write_bytes(data[: int(share * len(data))])
        again, summary = run(Exact(tasks=("classify",)), cameras=(str(torn),), as_fast_as_possible=True)
        assert results(again) == whole[: summary.processed]
        held.append(summary.processed)
    assert held == sorted(held)
    assert held[-1] > held[0] > 0
    torn.write_bytes(data[:400])
    with pytest.raises(SourceError, match=r"torn\.mcap"):
        run(Exact(), cameras=(str(torn),))


KILLED = """
import sys
from edgemm.live.options import SOUND_TASKS, VISION_TASKS, StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sinks.recording import McapSink
from tests.live.test_replay import Exact
options = StreamOptions(cameras=("test://?size=320x240",), mic="test://", tasks=("classify",), every_s=0.05)
Pipeline(Exact(), options, [McapSink(sys.argv[1]), JsonlSink(sys.stdout)]).run()
"""


def test_after_a_kill(tmp_path: Path) -> None:
    import json

    path, said = tmp_path / "run.mcap", []
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while len(said) < 60:
        event = json.loads(process.stdout.readline())
        said += [event] if event["type"] == "labels" else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    keep, _ = run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True)
    again = keep.of("labels")
    assert said[-1]["t_capture_s"] - again[-1].t_capture_s <= 1.0  # type: ignore[attr-defined]
    told = {event["frame"]: (event["labels"][0]["label"], event["t_capture_s"]) for event in said}
    for now in again:
        if now.frame in told:  # type: ignore[attr-defined]
            assert told[now.frame] == (now.labels[0].label, round(now.t_capture_s, 4))  # type: ignore[attr-defined]
    assert len(again) > 40


def test_a_hole_in_the_packets_is_in_the_books(silent_clip: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "run.mcap"
    write = McapRecorder.write_packet

    def lossy(self, packet):  # type: ignore[no-untyped-def]
        if packet.number not in range(5, 9):
            write(self, packet)

    monkeypatch.setattr(McapRecorder, "write_packet", lossy)
    keep, summary = recorded(path, Exact(tasks=("classify",)), cameras=(str(silent_clip),), as_fast_as_possible=True)
    again, summary_again = run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True)
    assert results(again) == results(keep)[:5]  # this file has one key frame
    assert summary_again.captured == summary.captured == 60
    assert summary_again.dropped == {"decode_error": 55}


def test_a_recording_of_no_run_is_played_as_a_film(silent_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mcap"
    record(str(silent_clip), None, path)
    assert not is_run(str(path))
    keep, summary = run(Exact(tasks=("classify",)), cameras=(str(path),), as_fast_as_possible=True)
    assert summary.processed == 60
    original, _ = run(Exact(tasks=("classify",)), cameras=(str(silent_clip),), as_fast_as_possible=True)
    labels: list[list[Event]] = [keep.of("labels"), original.of("labels")]
    assert [e.labels for e in labels[0]] == [e.labels for e in labels[1]]  # type: ignore[attr-defined]


def test_the_default_bundle_says_the_same(tmp_path: Path) -> None:
    import edgemm

    try:
        model = edgemm.load()
    except BundleError as error:
        pytest.skip(str(error))
    path = tmp_path / "run.mcap"
    first = recorded(path, model, cameras=(str(CLIP),), duration_s=6.0)
    assert [e for e in first[0].of("transcript") if e.final]  # type: ignore[attr-defined]
    same(first, run(model, cameras=(str(path),), as_fast_as_possible=True))
