"""A VLM of SmolVLM-256M's dimensions, int8 and int4, from `edgemm export`, against its peers on this processor.

    python benchmarks/peers_vlm.py --work /tmp/peers-vlm --rounds 10

The first call makes the checkpoint (or takes `--checkpoint`), edgemm's bundles, an environment for each peer and the
peer's model in it (`peers_vlm_models.py`); `--only-prepare` ends there. Then every contender runs in a process of its
own, in alternating rounds (`peers_vlm_contenders.py`): prefill, one token after 200 and after 1000 positions, the
vision tower over one tile; and the answer to a question about one picture of 512 px, with the peak memory. Printed are
the medians of the rounds, their ratios, the goals, and the share of the memory's bandwidth that decoding reaches.
Every contender has two threads, but those called `default`: onnxruntime-genai takes one of two cores by itself.
`SELDOM` take part in the first rounds only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from peers_vlm_contenders import THREADS
from peers_vlm_models import PEERS, prepare

CONTENDERS = {
    "graphs": (
        "edgemm-onnxruntime-int8", "edgemm-openvino-int8", "genai-int8",
        "genai-int8-default", "optimum", "llama-int8",
        "edgemm-onnxruntime-int4",
        "genai-int4", "genai-int4-default", "llama-int4", "transformers-eager", "transformers-compiled",
    ),
    "answer": (
        "edgemm-auto-int8", "edgemm-onnxruntime-int8", "edgemm-openvino-int8",
        "optimum", "transformers-eager",
    ),
    "bandwidth": ("memory",),
}  # fmt: skip
SELDOM = {"transformers-eager": 3, "transformers-compiled": 2}
"""Rounds of those that are slow and far away."""
COLUMNS = {
    "graphs": ("prefill 80", "prefill 200", "prefill 1000", "decode at 200", "decode at 1000", "vision"),
    "answer": ("first token", "per token", "MB"),
    "bandwidth": ("GB/s",),
}


class Goal(NamedTuple):
    """What of one contender is at most `most` times another's."""

    kind: str
    what: str
    ours: str
    theirs: str
    most: float


GOALS = (
    *(
        Goal("graphs", what, "edgemm-onnxruntime-int8", theirs, most)
        for what, theirs, most in (
            ("decode at 200", "genai-int8", 0.70),
            ("decode at 200", "genai-int8-default", 0.70),
            ("decode at 200", "optimum", 0.65),
            ("decode at 1000", "genai-int8", 0.65),
            ("decode at 1000", "genai-int8-default", 0.65),
            ("prefill 200", "genai-int8", 0.45),
            ("prefill 200", "genai-int8-default", 0.45),
        )
    ),
    Goal("graphs", "decode at 200", "edgemm-openvino-int8", "optimum", 0.95),
    Goal("graphs", "vision", "edgemm-openvino-int8", "optimum", 0.80),
    *(
        Goal("graphs", what, "edgemm-onnxruntime-int4", theirs, most)
        for theirs in ("genai-int4", "genai-int4-default")
        for what, most in (("decode at 200", 0.80), ("decode at 1000", 1.10))
    ),
    Goal("answer", "first token", "edgemm-auto-int8", "optimum", 0.80),
    Goal("answer", "per token", "edgemm-auto-int8", "optimum", 0.50),
)
BASES = {"graphs": ("genai-int8", "optimum"), "answer": ("optimum",), "bandwidth": ()}
Found = dict[tuple[str, str], list[dict[str, list[float]]]]
"""(kind, contender) → its rounds."""


def measure(work: Path, kind: str, name: str) -> dict[str, list[float]]:
    """One round of one contender."""
    family = name.partition("-")[0]
    python = work / f"env-{family}" / "bin" / "python" if family in PEERS else Path(sys.executable)
    command = [python, Path(__file__).with_name("peers_vlm_contenders.py"), work, kind, name]
    # What edgemm remembers (its choice of runtimes, lowered graphs) is this benchmark's own; so is compiled code.
    own = {"XDG_CACHE_HOME": str(work / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    own |= {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {name}\n{done.stderr[-4000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(work: Path, rounds: int, wanted: dict[str, list[str]]) -> Found:
    """Every contender's rounds, in turns; one of edgemm's before, uncounted, in which it settles its choices."""
    shutil.rmtree(work / "cache" / "edgemm" / "choices", ignore_errors=True)
    found: Found = {(kind, name): [] for kind, names in wanted.items() for name in names}
    for kind, name in found:
        if name.startswith("edgemm"):
            measure(work, kind, name)
    for number in range(rounds):
        start = time.perf_counter()
        for (kind, name), made in found.items():
            if number < SELDOM.get(name, rounds):
                made.append(measure(work, kind, name))
        print(f"round {number + 1}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def median(found: Found, kind: str, name: str, what: str) -> float | None:
    """Of the medians of the rounds; None where it was not measured."""
    rounds = [statistics.median(r[what]) for r in found.get((kind, name), []) if what in r]
    return statistics.median(rounds) if rounds else None


def table(found: Found, kind: str) -> None:
    """Medians, and in brackets the ratios to each base."""
    columns = COLUMNS[kind]
    bases = [b for b in BASES[kind] if (kind, b) in found]
    heading = f", in brackets of {' and of '.join(bases)}" if bases else ""
    print(f"\n| {kind}, median ms{heading} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for own, name in found:
        if own != kind:
            continue
        cells = []
        for what in columns:
            value = median(found, kind, name, what)
            others = [median(found, kind, base, what) for base in bases]
            ratios = [f"{value / other:.2f}" for other in others if value and other]
            cells.append("" if value is None else f"{value:.2f}" + (f" ({', '.join(ratios)})" if ratios else ""))
        print(f"| {name} | {' | '.join(cells)} |")


def goals(found: Found) -> None:
    """Each ratio of medians beside what it should be."""
    print("\n| goal | ratio | at most | |\n|---|---|---|---|")
    for kind, what, ours, theirs, most in GOALS:
        own, other = (median(found, kind, name, what) for name in (ours, theirs))
        if own and other:
            mark = "holds" if own / other <= most else "MISSED"
            print(f"| {what}, {ours} of {theirs} | {own / other:.3f} | {most:.2f} | {mark} |")


def limits(work: Path, found: Found) -> None:
    """How much of the bandwidth decoding takes, and the memory of answering beside what it may be."""
    gb_s = median(found, "bandwidth", "memory", "GB/s")
    for precision in ("int8", "int4"):
        graphs = work / f"edgemm-{precision}" / "graphs"
        bytes_ = sum(path.stat().st_size for path in graphs.glob("decoder*"))
        for name in (f"edgemm-onnxruntime-{precision}", "edgemm-openvino-int8"):
            ms = median(found, "graphs", name, "decode at 200") if precision in name else None
            if gb_s and ms:
                share = bytes_ / (ms / 1e3) / (gb_s * 1e9)
                print(f"{name}: {bytes_ / 1e6:.0f} MB a token is {share:.0%} of {gb_s:.1f} GB/s")
    bundle = sum(path.stat().st_size for path in (work / "edgemm-int8").rglob("*") if path.is_file()) / 2**20
    for runtime in ("auto", "onnxruntime", "openvino"):
        peak = median(found, "answer", f"edgemm-{runtime}-int8", "MB")
        if peak:
            allowed = f"1.3 × the bundle's {bundle:.0f} + 300 = {1.3 * bundle + 300:.0f}"
            print(f"answering, {runtime}: peak of {peak:.0f} MB; allowed are {allowed}")


def picture(target: Path) -> None:
    """One picture of 512 px, as every environment can read it."""
    import cv2
    import numpy as np

    image = cv2.imread(str(Path(__file__).parents[1] / "samples" / "clip" / "cup.jpg"))
    np.save(target, cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (512, 512), interpolation=cv2.INTER_AREA))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="SmolVLM-256M's dimensions; made where it is left out")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="parts of KIND:CONTENDER; all by default")
    parser.add_argument("--only-prepare", action="store_true")
    options = parser.parse_args()
    wanted = {
        kind: [name for name in names if not options.only or any(o in f"{kind}:{name}" for o in options.only)]
        for kind, names in CONTENDERS.items()
    }
    families = {name.partition("-")[0] for names in wanted.values() for name in names}
    prepare(options.work, options.checkpoint, families & PEERS.keys())
    picture(options.work / "picture.npy")
    if options.only_prepare:
        return
    found: Any = run(options.work, options.rounds, wanted)
    (options.work / "rounds.json").write_text(json.dumps({":".join(key): made for key, made in found.items()}))
    for kind in ("graphs", "answer"):
        if wanted[kind]:
            table(found, kind)
    goals(found)
    limits(options.work, found)


if __name__ == "__main__":
    main()
