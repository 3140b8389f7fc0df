"""The default bundle against the same weights in transformers fp32: speech and labels, alternating rounds.

    python benchmarks/default_bundle.py --rounds 10

Each round runs each contender in a process of its own on the sample clip's sound and one of its frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("edgemm-onnxruntime", "edgemm-openvino", "transformers-fp32")
CALLS = 5


def _inputs():
    from edgemm.processing.audio import load_audio, to_mono_16k
    from edgemm.processing.image import to_rgb

    sound = to_mono_16k(*load_audio(ROOT / "samples/clip/clip.mp4"))
    return sound[170_000:], to_rgb(ROOT / "samples/clip/cup.jpg")


def _edgemm(runtime: str) -> tuple[Callable[[], object], Callable[[], object]]:
    import edgemm

    sound, picture = _inputs()
    model = edgemm.load(runtime=runtime)
    return lambda: model.transcribe(sound), lambda: model.classify(picture)


def _transformers() -> tuple[Callable[[], object], Callable[[], object]]:
    from edgemm.export import families
    from edgemm.export.checkpoint import find_checkpoint
    from edgemm.export.model_plan import Example

    sound, picture = _inputs()
    parts = find_checkpoint(ROOT / "samples/checkpoint").parts
    speech = families.find("moonshine").plan(find_checkpoint(parts["speech"])).reference
    labels = families.find("efficientnet-lite0").plan(find_checkpoint(parts["labels"])).reference
    return lambda: speech(Example(audio=sound)), lambda: labels(Example(image=picture))


def measure(contender: str) -> dict[str, float]:
    """Median milliseconds of `CALLS` warm calls of each task."""
    name, _, runtime = contender.partition("-")
    tasks = _edgemm(runtime) if name == "edgemm" else _transformers()
    medians = []
    for call in tasks:
        call()
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        medians.append(statistics.median(times))
    return dict(zip(("transcribe_ms", "classify_ms"), medians, strict=True))


def main() -> None:
    """Print one row a contender: medians over the rounds and their ratio to the last contender's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--measure", choices=CONTENDERS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    rows: dict[str, list[dict[str, float]]] = {c: [] for c in CONTENDERS}
    for _ in range(arguments.rounds):
        for contender in CONTENDERS:
            command = [sys.executable, __file__, "--measure", contender]
            rows[contender].append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    base = {k: statistics.median(r[k] for r in rows[CONTENDERS[-1]]) for k in rows[CONTENDERS[-1]][0]}
    for contender, found in rows.items():
        medians = {k: statistics.median(r[k] for r in found) for k in base}
        print(contender, " ".join(f"{k} {v:.1f} ({v / base[k]:.2f}x)" for k, v in medians.items()))


if __name__ == "__main__":
    main()
