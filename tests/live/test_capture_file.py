"""Files played as cameras: pacing, newest wins, nothing lost when demand-paced, clean errors."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemm.errors import SourceError
from edgemm.live.audio_capture import open_audio
from edgemm.live.capture import VideoCapture, open_video
from edgemm.live.frames import AudioBlock
from edgemm.live.sources.testing import read_clock
from tests.rig.clip import write_clip
from tests.rig.watching import Taker, Watch, balanced, wait_until


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def _open(spec: object, watch: Watch, **options: object) -> VideoCapture:
    return open_video(
        str(spec),
        name="camera",
        clock=watch.clock,
        epoch=watch.epoch,
        on_status=watch.on_status,
        **options,  # type: ignore[arg-type]
    )


def test_file_plays_in_real_time(clip: Path) -> None:
    watch = Watch()
    capture = _open(clip, watch)
    with Taker(capture) as taker:
        taker.join()
    assert [read_clock(frame.image) for frame in taker.frames] == list(range(60))
    assert watch.epoch.start_s is not None
    for frame in taker.frames:
        assert frame.t_media_s is not None
        late_s = frame.t_capture_s - (watch.epoch.start_s + frame.t_media_s)
        assert -1e-3 < late_s < 0.05
    assert watch.states() == ["opening", "live", "ended"]
    assert capture.error is None
    assert not capture.live


def test_slow_taker_gets_the_newest(clip: Path) -> None:
    watch = Watch()
    capture = _open(clip, watch)
    unbalanced = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            counts = capture.ledger.counts()
            if not balanced(counts) or counts.in_flight > 3:
                unbalanced.append(counts)

    sampler = threading.Thread(target=sample)
    sampler.start()
    with Taker(capture, work_s=0.1) as taker:
        taker.join()
    done.set()
    sampler.join()
    counts = capture.ledger.counts()
    assert unbalanced == []
    assert counts.captured == 60
    assert counts.in_flight == 0
    assert counts.processed == len(taker.frames)
    played_s = taker.taken_s[-1] - taker.taken_s[0]  # 2 s, and what the machine stood still
    assert 15 <= counts.processed <= 4 + played_s / 0.1
    assert counts.dropped == {"superseded": 60 - counts.processed}
    assert read_clock(taker.frames[-1].image) == 59
    assert watch.epoch.start_s is not None
    ages = [
        taken_s - watch.clock._start_s - frame.t_capture_s
        for frame, taken_s in zip(taker.frames, taker.taken_s, strict=True)
    ]
    assert np.percentile(ages, 90) < 1 / 30 + 0.02


def test_as_fast_as_possible_loses_nothing(clip: Path) -> None:
    watch = Watch()
    capture = _open(clip, watch, as_fast_as_possible=True)
    began = time.monotonic()
    with Taker(capture, work_s=0.002) as taker:
        taker.join()
    assert time.monotonic() - began < 1.5
    assert [frame.id for frame in taker.frames] == list(range(60))
    counts = capture.ledger.counts()
    assert (counts.captured, counts.processed, counts.dropped) == (60, 60, {})


def test_wished_rate_and_size(clip: Path) -> None:
    watch = Watch()
    capture = _open(clip, watch, as_fast_as_possible=True, fps=10.0, size_px=(160, 120))
    with Taker(capture) as taker:
        taker.join()
    assert [read_clock(frame.image) for frame in taker.frames] == list(range(0, 60, 3))
    assert taker.frames[0].image.shape == (120, 160, 3)
    assert capture.ledger.counts().dropped == {"paced": 40}


def test_picture_and_sound_share_the_epoch(clip: Path) -> None:
    watch = Watch()
    capture = _open(clip, watch)
    sound = open_audio(str(clip), name="mic", clock=watch.clock, epoch=watch.epoch, on_status=watch.on_status)
    sound.start()
    blocks: list[AudioBlock] = []
    with Taker(capture) as taker:
        while not sound.ended:
            block = sound.read(0.1)
            if block is not None:
                late_s = watch.clock.now_s() - (block.t_start_s + 0.032)
                assert -1e-3 < late_s < 0.1
                blocks.append(block)
        taker.join()
    sound.stop()
    start_s = watch.epoch.start_s
    assert start_s is not None
    assert abs(blocks[0].t_start_s - start_s) < 0.05
    assert abs(taker.frames[0].t_capture_s - start_s) < 0.05
    assert sum(len(block.samples) for block in blocks) / 16_000 == pytest.approx(2.0, abs=0.08)
    assert {(len(block.samples), block.gap_s) for block in blocks} == {(512, 0.0)}
    heard = np.concatenate([block.samples for block in blocks])[4000:20_000]
    peak_hz = np.argmax(np.abs(np.fft.rfft(heard))) * 16_000 / len(heard)
    assert peak_hz == pytest.approx(440, abs=2)
    assert sound.ledger.counts().audio_s == pytest.approx(len(blocks) * 0.032)


def test_stop_settles_what_nobody_took(clip: Path) -> None:
    capture = _open(clip, Watch())
    capture.start()
    wait_until(lambda: capture.ledger.counts().captured > 3)
    capture.stop()
    counts = capture.ledger.counts()
    assert counts.in_flight == 0
    assert 1 <= counts.dropped["stale"] <= 2
    assert capture.take(0.0) is None
    assert capture.ended


def test_broken_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "torn.mp4", codec="mjpeg", sound=False)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data) - 3) if data[at : at + 3] == b"\xff\xd8\xff"]
    for start, end in itertools.pairwise(starts[10:16]):
        torn = start + (end - start) // 3
        data[torn:end] = bytes(end - torn)
    path.write_bytes(data)
    watch = Watch()
    capture = _open(path, watch, as_fast_as_possible=True)
    with Taker(capture) as taker:
        taker.join()
    counts = capture.ledger.counts()
    assert counts.dropped == {"decode_error": 5}
    assert counts.captured == 60
    assert counts.processed == len(taker.frames) == 55


def _text(path: Path) -> None:
    path.write_text("this is no film\n" * 50)


def _empty(path: Path) -> None:
    path.touch()


def _only_sound(path: Path) -> None:
    write_clip(path, frames=15)
    import av

    with av.open(str(path)) as source, av.open(str(path) + ".m4a", "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    Path(str(path) + ".m4a").rename(path)


def _missing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_text, "holds no video that can be decoded"),
        (_empty, "is empty (0 bytes)"),
        (_only_sound, "has no video stream (streams found: audio)"),
        (_missing, "does not exist"),
    ],
)
def test_one_clean_error(tmp_path: Path, make: object, says: str) -> None:
    path = tmp_path / "film.mp4"
    make(path)  # type: ignore[operator]
    watch = Watch()
    capture = _open(path, watch)
    capture.start()
    wait_until(lambda: capture.ended)
    capture.stop()
    assert isinstance(capture.error, SourceError)
    assert says in str(capture.error)
    assert str(path) in str(capture.error)
    assert "\n" not in str(capture.error)
    assert watch.states() == ["opening", "ended"]


def test_a_failed_source_does_not_hold_up_the_other(clip: Path, tmp_path: Path) -> None:
    watch = Watch()
    broken = _open(tmp_path / "absent.mp4", watch)
    capture = _open(clip, watch)
    began = time.monotonic()
    broken.start()
    with Taker(capture) as taker:
        wait_until(lambda: len(taker.frames) > 0)
        assert time.monotonic() - began < 1.0
    broken.stop()


def test_folder_of_pictures(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        image = np.full((48, 64, 3), number * 20, np.uint8)
        cv2.imwrite(str(tmp_path / f"picture{number}.png"), image)
    (tmp_path / "picture3.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("left out")
    capture = _open(tmp_path, Watch(), as_fast_as_possible=True, fps=5.0)
    with Taker(capture) as taker:
        taker.join()
    assert [int(frame.image[0, 0, 0]) for frame in taker.frames] == [20, 40, 200]
    assert [frame.t_media_s for frame in taker.frames] == pytest.approx([0.0, 0.2, 0.6])
    assert capture.ledger.counts().dropped == {"decode_error": 1}


def test_folder_without_pictures(tmp_path: Path) -> None:
    capture = _open(tmp_path, Watch())
    capture.start()
    wait_until(lambda: capture.ended)
    assert "holds no pictures" in str(capture.error)
