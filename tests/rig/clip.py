"""Small films made for a test: each frame carries its number as bits, the sound is a tone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from edgemm.live.sources.testing import paint_clock

SOUND_HZ = 48_000


def write_clip(
    path: Path,
    *,
    frames: int = 60,
    fps: int = 30,
    size_px: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    b_frames: int = 2,
    sound: bool = True,
) -> Path:
    """H.264 with B-frames and AAC by default."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps)
        video.width, video.height = size_px
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "bf": str(b_frames), "g": "15", "crf": "20"}
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono") if sound else None
        for number in range(frames):
            image = np.full((size_px[1], size_px[0], 3), 40 + number % 100, np.uint8)
            paint_clock(image, number)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            _write_tone(container, audio, frames / fps)
    return path


def _write_tone(container: av.container.OutputContainer, stream: av.AudioStream, s: float) -> None:
    phase = 2 * np.pi * 440 * np.arange(int(s * SOUND_HZ)) / SOUND_HZ
    samples = (0.3 * np.sin(phase)).astype(np.float32)[None]
    for first in range(0, samples.shape[1], 1024):
        piece = np.ascontiguousarray(samples[:, first : first + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_HZ, first, Fraction(1, SOUND_HZ)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
