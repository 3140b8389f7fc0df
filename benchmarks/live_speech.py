"""How soon speech is told live: the first partial, the final after the endpoint, and what the pipeline itself costs.

    python benchmarks/live_speech.py --rounds 4

Plays samples/clip/clip.mp4 as a camera and a microphone with the default bundle, all its tasks running.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import edgemm

CLIP = Path(__file__).parents[1] / "samples/clip/clip.mp4"


def one_round() -> dict[str, list[float]]:
    """Milliseconds of each utterance, and the overhead of frames."""
    told: dict[str, list[float]] = {"first_partial_ms": [], "final_after_endpoint_ms": []}
    first: dict[int, float] = {}
    ends: dict[int, float] = {}
    with edgemm.stream(edgemm.load(), camera=str(CLIP)) as live:
        for event in live:
            if event.type == "speech" and event.edge == "end":
                ends[event.utterance] = event.t_s
            elif event.type == "transcript" and not event.final:
                first.setdefault(event.utterance, event.t_s)
            elif event.type == "transcript":
                if event.utterance in first:  # a machine that is busy may have none
                    told["first_partial_ms"].append(1e3 * (first[event.utterance] - event.t_start_s))
                told["final_after_endpoint_ms"].append(1e3 * (event.t_s - ends[event.utterance]))
            elif event.type == "summary":
                told["overhead_p50_ms"] = [event.overhead_ms.p50]
                told["overhead_p99_ms"] = [event.overhead_ms.p99]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    rounds = [one_round() for _ in range(options.rounds)]
    for name in rounds[0]:
        values = [value for told in rounds for value in told[name]]
        figures = {"median": median(values), "least": min(values), "most": max(values), "n": len(values)}
        print(name, json.dumps({k: round(v, 1) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
