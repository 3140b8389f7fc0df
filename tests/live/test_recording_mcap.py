"""Recordings: replayed with the same pictures, sound and times, and readable after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.errors import SourceError, StorageError, UsageError
from edgemm.live.audio_capture import open_audio
from edgemm.live.capture import open_video
from edgemm.live.foxglove import AUDIO, IMAGE, VIDEO
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.mcap_file import EVENT, McapRecorder, read_messages
from edgemm.live.recording import RecordProgress, record
from edgemm.live.sources.testing import read_clock
from tests.rig.clip import write_clip
from tests.rig.mjpeg_camera import MjpegCamera
from tests.rig.rtsp_camera import RtspCamera
from tests.rig.rtsp_camera import missing as rtsp_missing
from tests.rig.watching import Taker, Watch, wait_until

ROOT = Path(__file__).resolve().parents[2]


def _pictures(path: Path) -> list[Frame]:
    watch = Watch()
    capture = open_video(
        str(path),
        name="camera",
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        as_fast_as_possible=True,
    )
    with Taker(capture) as taker:
        taker.join()
    assert capture.error is None
    return taker.frames


def _sound(path: Path) -> tuple[list[AudioBlock], float]:
    watch = Watch()
    capture = open_audio(
        str(path),
        name="mic",
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        as_fast_as_possible=True,
    )
    capture.start()
    blocks = []
    while not capture.ended:
        block = capture.read(0.1)
        if block is not None:
            blocks.append(block)
    capture.stop()
    assert watch.epoch.start_s is not None
    return blocks, watch.epoch.start_s


def test_a_file_is_replayed_as_it_was(tmp_path: Path) -> None:
    clip, path = write_clip(tmp_path / "clip.mp4"), tmp_path / "clip.mcap"
    summary = record(str(clip), str(clip), path)
    assert summary.frames == 60
    assert {m.schema for m in read_messages(path, (VIDEO, IMAGE))} == {VIDEO}
    original, replayed = _pictures(clip), _pictures(path)
    assert len(original) == len(replayed) == 60
    for before, after in zip(original, replayed, strict=True):
        assert np.array_equal(before.image, after.image)
        assert before.t_media_s == pytest.approx(after.t_media_s, abs=1e-3)
    (spoken, start_s), (heard, again_s) = _sound(clip), _sound(path)
    assert len(spoken) == len(heard) > 60
    for said, block in zip(spoken, heard, strict=True):
        assert np.abs(said.samples - block.samples).max() <= 1 / 32768
        assert said.t_start_s - start_s == pytest.approx(block.t_start_s - again_s, abs=1e-3)
        assert block.gap_s == 0.0
    assert summary.audio_s == pytest.approx(len(heard) * 0.032)


def test_mjpeg_packets_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "camera.mcap"
    told: list[RecordProgress] = []
    with MjpegCamera() as camera:
        summary = record(camera.url, None, path, duration_s=1.5, on_progress=told.append)
    frames = _pictures(path)
    assert len(frames) == summary.frames >= 35
    assert {m.schema for m in read_messages(path, (VIDEO, IMAGE))} == {IMAGE}
    assert told
    assert told[0].frames <= summary.frames
    sent_s = np.array([read_clock(frame.image) for frame in frames]) / 1000
    media_s = np.array([frame.t_media_s for frame in frames])
    assert np.abs((media_s - media_s[0]) - (sent_s - sent_s[0])).max() < 0.03
    assert summary.duration_s <= 1.5


@pytest.mark.skipif(rtsp_missing() is not None, reason=str(rtsp_missing()))
def test_an_rtsp_camera_with_its_sound(tmp_path: Path) -> None:
    path = tmp_path / "rtsp.mcap"
    with RtspCamera(size="320x240") as camera:
        summary = record(camera.url, camera.url, path, duration_s=1.5)
    assert {m.schema for m in read_messages(path, (VIDEO, IMAGE))} == {VIDEO}
    frames = _pictures(path)
    assert len(frames) == summary.frames > 25
    assert frames[0].image.shape == (240, 320, 3)
    assert summary.audio_s > 0.7


def test_pattern_and_tone_until_stopped(tmp_path: Path) -> None:
    path, stop = tmp_path / "test.mcap", threading.Event()
    threading.Timer(1.0, stop.set).start()
    summary = record("test://?size=320x240", "test://", path, stop=stop)
    assert 20 <= summary.frames <= 31
    assert 0.7 < summary.audio_s < 1.1
    assert summary.bytes == path.stat().st_size
    assert len(_pictures(path)) == summary.frames


def test_events_and_frames_of_a_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "run.mcap"
    recorder = McapRecorder(path, wall_offset_s=1.7e9)
    image = np.full((48, 64, 3), 77, np.uint8)
    recorder.write_frame(Frame(0, "camera", image, 0.5))
    recorder.write_audio(AudioBlock("mic", np.full(512, 0.25, np.float32), 16_000, 0.4))
    recorder.write_event({"type": "labels", "id": 3, "t_s": 0.6}, 0.6)
    recorder.close()
    (event,) = read_messages(path, (EVENT,))
    assert event.body == {"type": "labels", "id": 3, "t_s": 0.6}
    (sound,) = read_messages(path, (AUDIO,))
    assert (sound.topic, sound.t_media_s, sound.body["t_start_s"]) == ("/mic", pytest.approx(0.4, abs=1e-6), 0.4)
    (frame,) = _pictures(path)
    assert np.abs(frame.image.astype(int) - 77).max() <= 2
    assert frame.t_media_s == pytest.approx(0.5, abs=1e-6)


def test_the_reader_of_the_mcap_project_reads_it(tmp_path: Path) -> None:
    from mcap.reader import make_reader

    path = tmp_path / "clip.mcap"
    record(str(write_clip(tmp_path / "clip.mp4", frames=20)), None, path)
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 20
        schemas = [schema.name for schema, _, _ in reader.iter_messages() if schema]
    assert schemas == ["foxglove.CompressedVideo"] * 20


def test_after_a_kill_all_but_the_last_second_is_there(tmp_path: Path) -> None:
    path = tmp_path / "killed.mcap"
    code = (
        "import sys; from edgemm.live.recording import record;"
        "record('test://?size=320x240', 'test://', sys.argv[1],"
        " on_progress=lambda p: print(p.frames, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    frames = 0
    while frames < 75:
        frames = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = _pictures(path)
    assert frames - 30 <= len(kept)
    blocks, _ = _sound(path)
    assert len(blocks) * 0.032 > frames / 30 - 1.2


def test_cut_anywhere_it_is_readable(tmp_path: Path) -> None:
    path, torn = tmp_path / "whole.mcap", tmp_path / "torn.mcap"
    recorder = McapRecorder(path, wall_offset_s=0.0)
    for number in range(12):
        image = np.random.default_rng(number).integers(0, 255, (32, 64, 3), np.uint8)
        recorder.write_frame(Frame(number, "camera", image, number / 10))
        recorder._writer.flush()
    recorder.close()
    data, counts = path.read_bytes(), []
    for end in range(8, len(data), 97):
        torn.write_bytes(data[:end])
        counts.append(len(list(read_messages(torn, (IMAGE,)))))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 12


def test_a_full_disk_is_one_error_and_the_rest_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "full.mcap"
    code = (
        "import resource, sys; from edgemm.errors import StorageError;"
        "from edgemm.live.recording import record;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try:\n    record('test://?size=640x480', None, sys.argv[1], duration_s=20)\n"
        "except StorageError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "cannot be written: File too large (free some space" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert len(_pictures(path)) > 5


def _no_place(path: Path) -> Any:
    return record("test://", None, path / "absent" / "x.mcap", duration_s=0.1)


def _no_camera(path: Path) -> Any:
    return record(str(path / "absent.mp4"), None, path / "x.mcap", duration_s=0.1)


def _nothing(path: Path) -> Any:
    return record("none", None, path / "x.mcap")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (_no_place, StorageError, "cannot be written: No such file"),
        (_no_camera, SourceError, "does not exist"),
        (_nothing, UsageError, "nothing to record"),
    ],
)
def test_what_cannot_be_recorded(tmp_path: Path, call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "text.mcap"
    path.write_text("no recording")
    sound_only = tmp_path / "sound.mcap"
    record(None, "test://?seconds=0.2", sound_only)
    for spec, says in ((path, "is not a recording"), (sound_only, "holds no pictures")):
        watch = Watch()
        capture = open_video(str(spec), name="c", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
        capture.start()
        wait_until(lambda capture=capture: capture.ended)  # type: ignore[misc]
        assert says in str(capture.error)


def test_stop_is_quick_with_a_frozen_camera(tmp_path: Path) -> None:
    stop, path = threading.Event(), tmp_path / "frozen.mcap"
    with MjpegCamera() as camera:
        threading.Timer(0.6, camera.frozen.set).start()
        threading.Timer(1.0, stop.set).start()
        began = time.monotonic()
        summary = record(camera.url, None, path, stop=stop)
        assert time.monotonic() - began < 2.0
    assert summary.frames > 5
