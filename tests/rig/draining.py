"""A reader of a network camera that does nothing but decode: how old pictures are where nothing comes between."""

from __future__ import annotations

import threading
import time

import av
import numpy as np

from edgemm.live.sources.testing import age_s

OPTIONS = {"rtsp_transport": "tcp", "probesize": "32", "analyzeduration": "0", "fflags": "nobuffer"}


def drain(url: str, seconds: float, stop: threading.Event | None = None) -> list[tuple[float, float]]:
    """(`time.monotonic()`, the age in ms by the picture's own clock) of every picture, as soon as it is RGB."""
    ages: list[tuple[float, float]] = []
    end_s = time.monotonic() + seconds
    with av.open(url, options=OPTIONS, timeout=(4.0, 3.0)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= 0x80000  # low delay
        for frame in container.decode(stream):
            image: np.ndarray = frame.to_ndarray(format="rgb24")
            now_s = time.monotonic()
            ages.append((now_s, 1e3 * age_s(image, now_s)))
            if now_s >= end_s or (stop is not None and stop.is_set()):
                break
    return ages
