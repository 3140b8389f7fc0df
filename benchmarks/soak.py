"""Memory and latency of a long run on a real RTSP camera and, where there is one, a microphone: printed and plotted.

    python benchmarks/soak.py 10 -o soak.png

The camera is GStreamer's server, the microphone a PulseAudio source (tests/rig); without GStreamer the test pattern
plays. The default bundle does all that it can, and speech of the sample clip is said once a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "samples/clip/clip.mp4"
WARM_S = 30.0


@dataclass
class Course:
    """What each `stats` said: seconds since the start, MB, ms, threads and descriptors."""

    t_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


def growth(t_s: list[float], values: list[float]) -> float:
    """Least squares, per hour, without the first half minute and without what is not known."""
    known = [(t, v) for t, v in zip(t_s, values, strict=True) if not np.isnan(v)]
    kept = [(t, v) for t, v in known if t >= WARM_S] or known
    return float(3600 * np.polyfit(*np.array(kept).T, 1)[0]) if len(kept) > 2 else 0.0


def soak(minutes: float, camera: str, mic: str | None) -> tuple[Course, object]:
    """Runs the default bundle for so long; the course of it, and its summary."""
    import edgemm

    course, ages_ms, summary = Course(), list[float](), None
    process = psutil.Process()
    with edgemm.stream(edgemm.load(), camera=camera, mic=mic, duration_s=60 * minutes) as live:
        for event in live:
            if event.type == "labels":
                ages_ms.append(event.latency_ms)
            elif event.type == "error":
                print("error:", event.message, file=sys.stderr)
            elif event.type == "stats":
                course.t_s.append(event.t_s)
                course.rss_mb.append(event.rss_mb)
                course.latency_ms.append(float(np.median(ages_ms)) if ages_ms else float("nan"))
                course.threads.append(threading.active_count())
                course.files.append(process.num_fds())
                ages_ms.clear()
            elif event.type == "summary":
                summary = event
    return course, summary


def plot(course: Course, path: Path) -> None:
    """Memory and latency over time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    minutes = np.array(course.t_s) / 60
    above.plot(minutes, course.rss_mb)
    above.set_ylabel("resident memory, MB")
    below.plot(minutes, course.latency_ms)
    below.set_ylabel("latency of labels, ms (median of a second)")
    below.set_xlabel("minutes")
    below.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def speak(microphone: object, stop: threading.Event) -> None:
    """Says what is said in the sample clip, once a minute."""
    import soxr

    from edgemm.processing.audio import load_audio

    said = soxr.resample(*load_audio(CLIP), 16_000)
    while not stop.is_set():
        microphone.play(said)  # type: ignore[attr-defined]
        stop.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("-o", "--output", type=Path, default=Path("soak.png"))
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.rig import microphone, rtsp_camera

    stop = threading.Event()
    with contextlib.ExitStack() as rig:
        camera, mic = "test://", None
        if rtsp_camera.missing() is None:
            camera = rig.enter_context(rtsp_camera.RtspCamera()).url
        if microphone.missing() is None:
            pipe = rig.enter_context(microphone.PipeMicrophone())
            os.environ.update({k: v for k, v in pipe.environment.items() if k != "HOME"})
            threading.Thread(target=speak, args=(pipe, stop), daemon=True).start()
            mic = "default"
        print(f"camera {camera}, microphone {mic or 'none'}, {options.minutes:g} min, {time.strftime('%Y-%m-%d')}")
        course, summary = soak(options.minutes, camera, mic)
        stop.set()
    plot(course, options.output)
    settled = [mb for t_s, mb in zip(course.t_s, course.rss_mb, strict=True) if t_s >= WARM_S] or course.rss_mb
    print(f"memory {settled[0]:.1f} → {settled[-1]:.1f} MB, most {max(settled):.1f}; "
          f"{growth(course.t_s, course.rss_mb):+.1f} MB/h")  # fmt: skip
    print(f"latency {growth(course.t_s, course.latency_ms):+.2f} ms/h; threads {course.threads[-1]} "
          f"(most {max(course.threads)}), descriptors {course.files[-1]} (most {max(course.files)})")  # fmt: skip
    steps = [later - sooner for sooner, later in itertools.pairwise(course.t_s)]
    print(f"longest pause between two stats {max(steps, default=0.0):.2f} s")
    print(summary)
    print("plotted in", options.output)


if __name__ == "__main__":
    main()
