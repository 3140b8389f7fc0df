"""What the sinks leave behind: lines, pictures, videos in step with their sound."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edgemm.errors import StorageError, UsageError
from edgemm.live.events import LabelsEvent, StatusEvent, TranscriptEvent
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.options import StreamOptions
from edgemm.live.overlay import Overlay, Results
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.base import SinkContext, SinkLimits, SinkQueue
from edgemm.live.sinks.jsonl import JsonlSink
from edgemm.live.sinks.picture import PictureSink
from edgemm.live.sinks.recording import McapSink
from edgemm.live.sinks.text import TextSink
from edgemm.live.sinks.video import Mp4Writer, VideoSink
from edgemm.live.window import WindowSink, why_no_window
from edgemm.results import Label
from tests.live.live_fakes import FakeModel, write_video

CONTEXT = SinkContext(has_picture=True, has_sound=True, media_time=False, wall_offset_s=0.0, stop=lambda: None)
FLASHES_S = (1.0, 2.5)


def labels(frame, score, t_s=0.0, label="tabby, tabby cat"):
    return LabelsEvent(
        source="camera", t_s=t_s, labels=(Label(label, score),), frame=frame, t_capture_s=t_s,
        model_ms=1.0, latency_ms=2.0,
    )  # fmt: skip


def transcript(text, t_s=0.0):
    return TranscriptEvent(
        source="mic", t_s=t_s, utterance=0, text=text, final=True, stable_chars=len(text),
        t_start_s=0.0, t_end_s=1.0, latency_ms=1.0,
    )  # fmt: skip


def grey_frame(number, t_s, size_px=(320, 240), value=128):
    image = np.full((size_px[1], size_px[0], 3), value, np.uint8)
    return Frame(number, "camera", image, t_s)


@pytest.fixture(scope="module")
def flash_clip(tmp_path_factory):
    """A white frame and a click at the same moments."""
    at = {round(t * 30) for t in FLASHES_S}
    frames = [np.full((240, 320, 3), 235 if n in at else 16, np.uint8) for n in range(105)]
    sound = np.zeros(int(3.5 * 16_000), np.float32)
    for t in FLASHES_S:
        start = int(t * 16_000)
        sound[start : start + 480] = 0.9 * np.sin(0.5 * np.arange(480))
    return write_video(tmp_path_factory.mktemp("flash") / "flash.mp4", frames, sound=sound)


def flashes_and_clicks(path):
    with av.open(str(path)) as container:
        centre = slice(100, 140), slice(150, 170)
        means = [(f.time, f.to_ndarray(format="gray")[centre].mean())
                 for f in container.decode(video=0)]  # fmt: skip
    with av.open(str(path)) as container:
        loud = [
            frame.time + float(n) / frame.sample_rate
            for frame in container.decode(audio=0)
            for n in np.nonzero(np.abs(frame.to_ndarray()[0]) > 0.3)[0]
        ]
    clicks = [b for a, b in zip([-1.0, *loud], loud, strict=False) if b - a > 0.5]
    return [t for t, mean in means if mean > 120], clicks


@pytest.mark.parametrize("fast", [False, True])
def test_video_is_in_step_with_its_sound(flash_clip, tmp_path, fast):
    out = tmp_path / "out.mp4"
    options = StreamOptions(cameras=(str(flash_clip),), as_fast_as_possible=fast)
    Pipeline(FakeModel(work_s=0.002), options, [VideoSink(out)]).run()
    flashes, clicks = flashes_and_clicks(out)
    assert flashes == pytest.approx(FLASHES_S, abs=0.03)
    assert clicks == pytest.approx(flashes, abs=0.02)


def test_video_has_every_frame_that_was_taken(flash_clip, tmp_path):
    out = tmp_path / "out.mp4"
    options = StreamOptions(cameras=(str(flash_clip),), every_s=1.0, as_fast_as_possible=True)
    summary = Pipeline(FakeModel(), options, [VideoSink(out)]).run()
    with av.open(str(out)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.audio[0].codec_context.name == "aac"
        assert sum(1 for _ in container.decode(video)) == summary.captured == 105


KILLED = """
import sys
from edgemm.live.options import StreamOptions
from edgemm.live.pipeline import Pipeline
from edgemm.live.sinks.text import TextSink
from edgemm.live.sinks.video import VideoSink
from tests.live.live_fakes import FakeModel
options = StreamOptions(cameras=("test://?size=320x240",), mic="test://")
Pipeline(FakeModel(), options, [TextSink(sys.stdout), VideoSink(sys.argv[1])]).run()
"""


def test_video_opens_after_sigkill(tmp_path):
    out = tmp_path / "out.mp4"
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        while "sees" not in child.stdout.readline():
            pass
    time.sleep(3.0)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with av.open(str(out)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    with av.open(str(out)) as container:
        sound_s = sum(f.samples / f.sample_rate for f in container.decode(audio=0))
    assert times[-1] >= 2.0
    assert sound_s >= 1.9


def test_odd_sizes_and_changing_ones(tmp_path):
    writer = Mp4Writer(tmp_path / "odd.mp4", (121, 161, 3), sound=False)
    for n, shape in enumerate([(121, 161, 3), (121, 161, 3), (240, 320, 3), (64, 48, 3)]):
        writer.picture(np.full(shape, 90, np.uint8), n / 30)
    writer.close()
    with av.open(str(tmp_path / "odd.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [(frame.width, frame.height) for frame in frames] == [(160, 120)] * 4


def test_a_gap_in_the_sound_becomes_silence(tmp_path):
    writer = Mp4Writer(tmp_path / "gap.mp4", (120, 160, 3), sound=True)
    writer.picture(np.zeros((120, 160, 3), np.uint8), 0.0)
    tone = 0.5 * np.sin(0.3 * np.arange(16_000)).astype(np.float32)
    writer.sound(tone, 0.0)
    writer.sound(tone, 2.0)
    writer.picture(np.zeros((120, 160, 3), np.uint8), 3.0)
    writer.close()
    with av.open(str(tmp_path / "gap.mp4")) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    starts = [int(t * 16_000) for t in (0.2, 1.2, 2.2)]
    levels = [np.abs(sound[start : start + 8000]).mean() for start in starts]
    assert levels[0] > 0.2
    assert levels[1] < 0.01
    assert levels[2] > 0.2


def test_a_place_that_cannot_be_written(tmp_path, silent_clip):
    options = StreamOptions(cameras=(str(silent_clip),))
    for sink in (VideoSink(tmp_path / "no" / "o.mp4"), McapSink(tmp_path / "no" / "o.mcap"),
                 PictureSink(tmp_path / "no" / "o.png")):  # fmt: skip
        with pytest.raises(StorageError, match=r"o\."):
            Pipeline(FakeModel(), options, [sink]).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_leaves_nothing(tmp_path, silent_clip):
    full = tmp_path / "full.mp4"
    full.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        Pipeline(FakeModel(), StreamOptions(cameras=(str(silent_clip),)), [VideoSink(full)]).run()
    assert not list(tmp_path.iterdir())


def test_names_that_do_not_fit():
    with pytest.raises(UsageError, match="mp4"):
        VideoSink("out.txt")
    with pytest.raises(UsageError, match="png"):
        PictureSink("out.gif")


def test_picture_is_the_best_frame(tmp_path):
    sink = PictureSink(tmp_path / "best.png")
    sink.open(CONTEXT)
    for number, score in enumerate([0.2, 0.9, 0.5]):
        sink.handle(labels(number, score))
        sink.handle(grey_frame(number, 0.0, value=60 + 60 * number))
    sink.close()
    image = cv2.imread(str(tmp_path / "best.png"))
    assert image.shape == (240, 320, 3)
    assert (image[200, 160] == 120).all()
    assert [path.name for path in tmp_path.iterdir()] == ["best.png"]


def test_picture_prefers_one_with_words(tmp_path):
    sink = PictureSink(tmp_path / "best.jpg")
    sink.open(CONTEXT)
    for number, score in enumerate([0.9, 0.6]):
        sink.handle(labels(number, score))
        sink.handle(grey_frame(number, 0.0, value=60 + 60 * number))
        sink.handle(transcript("good morning"))
    sink.close()
    assert abs(int(cv2.imread(str(tmp_path / "best.jpg"))[120, 160, 0]) - 120) < 4


def test_mcap_holds_pictures_sound_and_events(tmp_path, flash_clip):
    from mcap.reader import make_reader

    out = tmp_path / "out.mcap"
    options = StreamOptions(cameras=(str(flash_clip),), as_fast_as_possible=True)
    summary = Pipeline(FakeModel(), options, [McapSink(out)]).run()
    with out.open("rb") as stream:
        topics = [channel.topic for _, channel, _ in make_reader(stream).iter_messages()]
    by_topic = {topic: topics.count(topic) for topic in set(topics)}
    assert sorted(by_topic.values())[-1] == summary.id + 1  # every event
    assert 105 in by_topic.values()
    assert round(summary.audio_s / 0.032) in by_topic.values()


def test_jsonl_lines():
    out = io.StringIO()
    sink = JsonlSink(out)
    sink.open(CONTEXT)
    sink.handle(transcript("“ça va?”"))
    sink.handle(labels(3, 0.5))
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert first["text"] == "“ça va?”"
    assert second["labels"] == [{"label": "tabby, tabby cat", "score": 0.5}]


def test_a_closed_pipe_ends_the_run():
    command = KILLED.replace("text import TextSink", "jsonl import JsonlSink")
    command = command.replace("TextSink(sys.stdout)", "JsonlSink(sys.stdout)")
    command = command.replace(", VideoSink(sys.argv[1])", "")
    child = subprocess.Popen(
        [sys.executable, "-c", command], cwd=Path(__file__).parents[2], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["type"] == "started"
    child.stdout.close()
    assert child.wait(timeout=10) != 0
    child.communicate()


def test_text_says_a_label_once():
    out = io.StringIO()
    sink = TextSink(out)
    sink.open(CONTEXT)
    for number in range(60):
        sink.handle(labels(number, 0.5 + number / 1000, t_s=number / 30))
    sink.handle(labels(60, 0.7, t_s=3.2, label="laptop"))
    sink.handle(transcript("good morning", t_s=3.25))
    sink.handle(transcript("  ", t_s=3.5))
    sink.handle(StatusEvent(source="mic", t_s=4.0, state="ended", reason="the end was reached"))
    assert out.getvalue().splitlines() == [
        "   0.0 s  sees     tabby  0.50",
        "   3.2 s  sees     laptop  0.70",
        "   3.2 s  hears    “good morning”",
        "   4.0 s  source   mic ended: the end was reached",
    ]


def test_text_ends_with_a_table(talking_clip):
    out = io.StringIO()
    options = StreamOptions(cameras=(str(talking_clip),), as_fast_as_possible=True)
    Pipeline(FakeModel(), options, [TextSink(out)]).run()
    table = out.getvalue().split("\n\n")[-1]
    assert "90 captured, 90 processed, none dropped" in table
    assert all(word in table for word in ("latency", "overhead", "sound", "first result"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_text_on_a_terminal_keeps_the_words(talking_clip):
    out = Terminal()
    options = StreamOptions(cameras=(str(talking_clip),), as_fast_as_possible=True)
    Pipeline(FakeModel(), options, [TextSink(out)]).run()
    assert "seconds of sound" in out.getvalue()
    assert "90 captured" in out.getvalue()


SIZES_PX = [(1280, 720), (640, 480), (320, 240), (160, 120), (90, 200), (40, 30)]
LONG = "And so my fellow citizens ask not what your country can do for you “café” " * 3


@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("ground", [0, 255])
def test_overlay_stays_inside_and_is_readable(size_px, ground):
    results = Results()
    for number in range(3):
        results.update(labels(number, 0.9, t_s=number / 30, label="a" * 90))
    results.update(transcript(LONG))
    frame = grey_frame(0, 0.1, size_px, ground)
    before = frame.image.copy()
    image = Overlay().draw(frame, results)
    assert (frame.image == before).all()
    assert image.shape == before.shape
    changed = (image != ground).any(axis=-1)
    assert changed.any() or size_px[0] < 64
    edges = np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
    assert not edges.any()  # nothing touches the border, so nothing is cut off
    if size_px[0] >= 320:
        assert image.max() > 230  # white letters,
        assert np.median(image[changed]) < 90  # on dark panels


def test_what_was_said_fades():
    results = Results()
    results.update(transcript("good morning", t_s=10.0))
    assert results.transcript(12.9) == "good morning"
    assert results.transcript(13.1) == ""


def test_no_display_is_one_line(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    line = why_no_window()
    assert line is not None
    assert "\n" not in line
    assert "DISPLAY" in line


def test_window_limits_keep_only_the_newest_frame():
    queue = SinkQueue(WindowSink.limits)
    for number in range(5):
        queue.put(grey_frame(number, 0.0))
    item = queue.get()
    assert isinstance(item, Frame)
    assert item.id == 4
    assert queue.dropped == 4


def test_queue_keeps_the_order_of_kinds():
    queue = SinkQueue(SinkLimits(events=10, frames=10, blocks=10))
    block = AudioBlock("mic", np.zeros(512, np.float32), 16_000, 0.0)
    items = [transcript("a"), grey_frame(0, 0.0), block, transcript("b"), grey_frame(1, 0.0)]
    for item in items:
        queue.put(item)
    queue.close()
    assert [queue.get() for _ in items] == items
    assert queue.get() is None
