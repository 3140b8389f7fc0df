"""What a file holds, and the frames of a video."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from edgemm.errors import InputError, SourceError
from edgemm.processing.media import VideoFrame, iter_video, sniff
from edgemm.processing.video import sample_fps, sample_indices

RATE_FPS = 10


@pytest.fixture(scope="module")
def make_video(tmp_path_factory):
    """An mp4 (or another container) whose frame `i` is grey `20 · i`."""

    def make(name, frames=6, codec="mpeg4", rotation=0, tone=False):
        path = tmp_path_factory.mktemp("video") / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=RATE_FPS)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            sound = container.add_stream("aac", rate=16_000) if tone else None
            for i in range(frames):
                image = np.full((48, 64, 3), 20 * i, np.uint8)
                image[:24, :32] = 240
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
            if sound is not None:
                block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                block.sample_rate = 16_000
                container.mux(sound.encode(block))
                container.mux(sound.encode(None))
        return path

    return make


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov", "ümlaut name.mp4", "no-suffix.mp4"])
def test_videos(make_video, name):
    path = make_video(name, tone=name.endswith("mp4"))
    if name == "no-suffix.mp4":
        path = path.rename(path.with_name("wrong.txt"))
    assert sniff(path) == "video"
    frames = list(iter_video(path))
    assert len(frames) == 6
    np.testing.assert_allclose([f.t_s for f in frames], np.arange(6) / RATE_FPS, atol=1e-3)
    for i, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert abs(int(np.median(frame.image[30:, 40:])) - 20 * i) <= 6


def test_a_video_turned_by_its_metadata_comes_upright(make_video, tmp_path):
    """A phone stores a turned picture and says so in the matrix of the track header."""
    data = bytearray(make_video("turned.mp4", frames=2).read_bytes())
    header = data.index(b"tkhd") + 4
    one = 1 << 16
    matrix = [0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30]
    data[header + 40 : header + 76] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    image = next(iter_video(path)).image
    assert image.shape == (64, 48, 3)
    # Turned clockwise: what was at the top left is now at the top right.
    assert image[:24, 32:].mean() > 200
    assert image[:24, :16].mean() < 60


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm", "jp2"])
def test_pictures(picture, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(20, 30)).save(path)
    assert sniff(path) == "image"
    lying = path.rename(tmp_path / "a.mp4")
    assert sniff(lying) == "image"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_sounds(sound, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sound(0.5), 16_000)
    assert sniff(path) == "audio"
    with pytest.raises(SourceError, match="no pictures"):
        list(iter_video(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.mp4", b"just a text\n" * 50, "text file"),
        ("unicode.mp4", "schöne Grüße, 日本\n".encode() * 300, "text file"),
        ("one.mp4", b"x", "text file"),
        ("empty.mp4", b"", "0 bytes"),
        ("noise.mp4", bytes(range(256)) * 40, "can be decoded"),
        ("rec.mcap", b"\x89MCAP0\r\n" + bytes(20), "MCAP recording"),
        ("torn.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(100), "can be decoded"),
        ("list.m3u8", b"#EXTM3U\n/etc/passwd\n", "text file"),
    ],
)
def test_bad_files_are_named_as_such(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says) as caught:
        sniff(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError):
        list(iter_video(path))


def test_places_that_hold_no_file(tmp_path):
    for place, says in (
        (tmp_path, "directory"),
        (tmp_path / "no.mp4", "not exist"),
        ("a\0b", "not exist|cannot be read"),
    ):
        with pytest.raises(SourceError, match=says):
            sniff(place)
        with pytest.raises(SourceError, match=says):
            list(iter_video(place))


def test_a_cut_video_ends_in_an_error(make_video, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(make_video("whole.mp4").read_bytes()[:-500])
    with pytest.raises(SourceError):
        list(iter_video(path))


def test_leaving_early_closes_the_file(make_video):
    path = make_video("early.mp4")
    frames = iter_video(path)
    next(frames)
    frames.close()
    path.unlink()


@pytest.mark.parametrize("total", [1, 2, 7, 30, 299, 300, 1001])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_sample_indices(total, count):
    made = sample_indices(total, count)
    if count >= total:
        assert made == list(range(total))
    else:
        # transformers: arange(0, total, total / count) as integers.
        assert made == np.arange(0, total, total / count).astype(int)[:count].tolist()


@pytest.mark.parametrize(("total", "count"), [(0, 1), (5, 0), (-1, 3)])
def test_sample_indices_refuses(total, count):
    with pytest.raises(InputError):
        sample_indices(total, count)


@pytest.mark.parametrize(
    ("source_fps", "fps", "expected"),
    [(30, 1, [0, 30, 60]), (30, 10, list(range(0, 90, 3))), (10, 30, list(range(30)))],
)
def test_sample_fps(source_fps, fps, expected):
    blank = np.zeros((1, 1, 3), np.uint8)
    frames = [VideoFrame(blank, i / source_fps) for i in range(3 * source_fps)]
    made = list(sample_fps(iter(frames), fps))
    assert [round(f.t_s * source_fps) for f in made] == expected
    with pytest.raises(InputError):
        list(sample_fps(iter(frames), 0))
