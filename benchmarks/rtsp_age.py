"""How old pictures of a real RTSP camera are when a model that is three times slower begins with them.

    python benchmarks/rtsp_age.py 10

The camera (GStreamer, H.264, 640x480 at 30 fps, tests/rig) paints its clock into the pictures. Two readers are on it at
the same time, in processes of their own: one that does nothing but decode, as fast as pictures come, and edgemm's
pipeline with a task that sleeps 100 ms. Ages are of that clock: from painting to RGB, and to the beginning of the task.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import edgemm
from edgemm.live.sources.testing import age_s
from edgemm.results import Label, Labels

ROOT = Path(__file__).resolve().parent.parent
WORK_S = 0.1
WARM_S = 2.0
GOAL_MS, GOAL_SLOPE_MS = 10.0, 1.0
Ages = list[tuple[float, float]]


class Slow:
    """A model that notes how old each picture is, in ms by its own clock, and then takes `WORK_S`."""

    tasks: tuple[str, ...] = ("classify",)
    name = "slow"

    def __init__(self) -> None:
        self.runtimes, self.precisions = {"model": "none"}, {"model": "none"}
        self.ages: Ages = []

    def classify(self, image: np.ndarray, *, top: int = 5) -> Labels:
        """Sleeps."""
        began_s = time.monotonic()
        self.ages.append((began_s, 1e3 * age_s(image, began_s)))
        time.sleep(WORK_S)
        return Labels((Label("something", 1.0),)[:top], 1e3 * (time.monotonic() - began_s))

    def warm_up(self, tasks: tuple[str, ...]) -> None:
        """Nothing to warm."""


def slope(ages: Ages) -> float:
    """Least squares, ms a minute."""
    t_s, ms = np.array(ages).T
    return float(60 * np.polyfit(t_s - t_s[0], ms, 1)[0])


def settled(ages: Ages) -> Ages:
    """Without the first seconds."""
    return [(t_s, ms) for t_s, ms in ages if t_s >= ages[0][0] + WARM_S]


def report(name: str, ages: Ages) -> np.ndarray:
    """Prints one reader's ages; p50 and p95."""
    p50, p95, most = np.percentile([ms for _, ms in ages], [50, 95, 100])
    print(f"{name:<8} {len(ages):6} pictures, age p50 {p50:.1f}, p95 {p95:.1f}, most {most:.1f} ms, "
          f"slope {slope(ages):+.3f} ms/min")  # fmt: skip
    return np.array([p50, p95])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("--drain", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.rig import rtsp_camera
    from tests.rig.draining import drain

    seconds = 60 * options.minutes
    if options.drain:
        print(json.dumps(drain(options.drain, seconds)))
        return
    if (why := rtsp_camera.missing()) is not None:
        sys.exit(why)
    model = Slow()
    with rtsp_camera.RtspCamera(clock=True) as camera:
        command = [sys.executable, __file__, str(options.minutes), "--drain", camera.url]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bare,
            edgemm.stream(model, camera=camera.url, mic="none", duration_s=seconds) as live,
        ):
            summary = live.wait()
            drained = json.loads(bare.communicate(timeout=30)[0])
    print(f"{time.strftime('%Y-%m-%d')}, {options.minutes:g} min: captured {summary.captured}, processed "
          f"{summary.processed}, dropped {summary.dropped}")  # fmt: skip
    apart = report("edgemm", settled(model.ages)) - report("bare", settled(drained))
    print(f"difference p50 {apart[0]:+.1f}, p95 {apart[1]:+.1f} ms (goal {GOAL_MS:g}); "
          f"slope {slope(settled(model.ages)):+.3f} ms/min (goal {GOAL_SLOPE_MS:g})")  # fmt: skip


if __name__ == "__main__":
    main()
