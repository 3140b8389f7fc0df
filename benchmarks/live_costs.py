"""What the live pipeline costs beside the model: voice activity, hand-off, overhead, and pictures a second.

    python benchmarks/live_costs.py --rounds 5

* voice activity: processor time of a second of speech, and of one push of 32 ms;
* hand-off: from a picture's capture to the worker that takes it, 30 pictures a second, a model that does nothing; and
  the slot between the two threads alone;
* overhead: latency less the model's time, the sample clip as a camera, the default bundle's classes;
* throughput: pictures a second as fast as possible, against a loop that decodes and converts them with PyAV and calls
  the same model: one that only prepares the picture (the default bundle's own preparation), and the whole model.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np

import edgemm
from edgemm.live.slot import Slot
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.processing.image import preprocess
from edgemm.results import Labels

CLIP = Path(__file__).resolve().parent.parent / "samples/clip/clip.mp4"
CHUNK, RATE_HZ, FPS = 512, 16_000, 30.0


class Stub:
    """A model whose classes are what `work` does with a picture."""

    tasks: tuple[str, ...] = ("classify",)
    name = "stub"

    def __init__(self, work: Callable[[np.ndarray], object] = lambda image: None) -> None:
        self.runtimes, self.precisions, self.work = {"model": "none"}, {"model": "none"}, work

    def classify(self, image: np.ndarray, *, top: int = 5) -> Labels:
        """Does the work."""
        began_s = time.perf_counter()
        self.work(image)
        return Labels((), 1e3 * (time.perf_counter() - began_s))

    def warm_up(self, tasks: Sequence[str]) -> None:
        """Nothing to warm."""


def voice_activity(model: edgemm.Model) -> dict[str, float]:
    """Over a minute of the sample clip's sound."""
    voice, samples = model.voice_activity(), to_mono_16k(*load_audio(CLIP))
    chunks = np.resize(samples, RATE_HZ * 60 // CHUNK * CHUNK).reshape(-1, CHUNK)
    for chunk in chunks[:100]:
        voice.push(chunk)
    took_ms, cpu_s = [], time.process_time()
    for chunk in chunks:
        began_s = time.perf_counter()
        voice.push(chunk)
        took_ms.append(1e3 * (time.perf_counter() - began_s))
    share = 100 * (time.process_time() - cpu_s) / (chunks.size / RATE_HZ)
    p50, p99 = np.percentile(took_ms, [50, 99])
    return {"percent_of_a_core": share, "push_p50_ms": p50, "push_p99_ms": p99}


def slot(n: int = 3000, period_s: float = 0.002) -> dict[str, float]:
    """From `put` in one thread to the return of `take` in another."""
    place: Slot[float] = Slot()

    def put() -> None:
        for _ in range(n):
            time.sleep(period_s)
            place.put(time.perf_counter())
        place.close()

    threading.Thread(target=put, daemon=True).start()
    waits_ms = []
    while not place.spent:
        put_s = place.take(1.0)
        if put_s is not None:
            waits_ms.append(1e3 * (time.perf_counter() - put_s))
    return {f"slot_p{q}_ms": float(np.percentile(waits_ms, q)) for q in (50, 99)}


def hand_off(seconds: float) -> dict[str, float]:
    """The stage `take` of a run on the test pattern."""
    with edgemm.stream(Stub(), camera=f"test://?fps={FPS:g}", mic="none", duration_s=seconds) as live:
        took = live.wait().stages_ms["take"]
    return {"take_p50_ms": took.p50 or 0.0, "take_p99_ms": took.p99 or 0.0}


def overhead(model: edgemm.Model) -> dict[str, float]:
    """The sample clip as a camera and a microphone, all tasks."""
    with edgemm.stream(model, camera=str(CLIP)) as live:
        summary = live.wait()
    return {f"overhead_p{q}_ms": getattr(summary.overhead_ms, f"p{q}") for q in (50, 99)}


def bare_fps(model: Any) -> float:
    """Pictures a second of a loop in one thread: decode, RGB, model."""
    began_s, n = time.perf_counter(), 0
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            model.classify(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
            n += 1
    return n / (time.perf_counter() - began_s)


def pipeline_fps(model: Any) -> float:
    """The same through the pipeline, from the opening of the source to the end."""
    with edgemm.stream(model, camera=str(CLIP), mic="none", tasks=("classify",), as_fast_as_possible=True) as live:
        summary = live.wait()
    return float(summary.fps)


def throughput(name: str, model: Any) -> dict[str, float]:
    """Both, in turn."""
    bare, piped = bare_fps(model), pipeline_fps(model)
    return {f"{name}_bare_fps": bare, f"{name}_pipeline_fps": piped, f"{name}_ratio": piped / bare}


def one_round(model: edgemm.Model, seconds: float) -> dict[str, float]:
    """All figures once."""
    entry = next(entry for entry in model.bundle.manifest.models if "classify" in entry.tasks)
    assert entry.processing.image is not None
    prepare = partial(preprocess, spec=entry.processing.image)
    return {
        **voice_activity(model), **slot(), **hand_off(seconds), **overhead(model),
        **throughput("prepare", Stub(prepare)), **throughput("classify", model),
    }  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the test pattern")
    parser.add_argument("--runtime", default="auto")
    options = parser.parse_args()
    with edgemm.load(runtime=options.runtime) as model:
        model.warm_up(model.tasks)
        rounds = [one_round(model, options.seconds) for _ in range(options.rounds)]
    print(time.strftime("%Y-%m-%d"), f"{len(rounds)} rounds: median, least, most")
    for name in rounds[0]:
        values = [told[name] for told in rounds]
        print(f"{name:<24}", json.dumps([round(v, 3) for v in (median(values), min(values), max(values))]))


if __name__ == "__main__":
    main()
