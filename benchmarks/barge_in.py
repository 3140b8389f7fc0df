"""How soon an answer is cut off when somebody begins to speak: from the first loud sample to `interrupted`, in ms.

    python benchmarks/barge_in.py --rounds 10
    python benchmarks/barge_in.py --rounds 10 --answers BUNDLE

Voice activity and transcripts are the default bundle's. Its answers are too short to be cut off, so they are
another bundle's: a tiny SmolVLM with random weights, or one of your own. The microphone is PulseAudio's through the
real PortAudio (tests/rig); the speech flite's in three voices and the LibriVox clips, another one each round.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgemm
from edgemm.live.events import Event
from edgemm.processing.audio import load_audio, to_mono_16k

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ = 16_000
LOUD = 0.1  # of the loudest sample
SAID_S = 1.5
GOAL_MS = 250.0


class Talkative:
    """The default bundle, but for its answers."""

    tasks = ("answer", "transcribe", "voice_activity")

    def __init__(self, hears: edgemm.Model, answers: edgemm.Model) -> None:
        self._hears, self._answers = hears, answers
        self.name = f"{hears.name} with answers of {answers.name}"
        self.runtimes = {**answers.runtimes, **hears.runtimes}
        self.precisions = {**answers.precisions, **hears.precisions}
        self.transcribe, self.voice_activity = hears.transcribe, hears.voice_activity

    def answer(
        self, frames: Sequence[Any], question: str, *, max_new_tokens: int, on_text: Callable[[str], None]
    ) -> Any:
        """The other bundle's, again and again until it is cut off."""
        while True:
            self._answers.answer(frames, question, max_new_tokens=max_new_tokens, on_text=on_text)

    def warm_up(self, tasks: Sequence[str]) -> None:
        """Both."""
        self._hears.warm_up(("transcribe", "voice_activity"))
        self._answers.warm_up(("answer",))


def sounds(folder: Path) -> list[tuple[str, np.ndarray]]:
    """(name, float32 [samples] at 16 kHz) of short stretches of speech that begin with its first loud sample."""
    from tests.rig.speech import flite_corpus, librivox_clips

    found = []
    for path, _ in [*flite_corpus(folder, 50, voices=("slt", "rms", "awb"), noise_snr_db=(None,)), *librivox_clips()]:
        samples = to_mono_16k(*load_audio(path))
        first = int(np.flatnonzero(np.abs(samples) > LOUD * np.abs(samples).max())[0])
        found.append((path.stem, samples[first : first + round(SAID_S * RATE_HZ)]))
    return found


def wait(live: Any, kind: str, after_s: float, timeout_s: float = 20.0) -> Event:
    """The next event of a kind that is later than `after_s` on the pipeline's clock."""
    while (event := live.latest(kind)) is None or event.t_s <= after_s:
        if live.now_s - after_s > timeout_s:
            raise TimeoutError(f"no {kind}")
        time.sleep(0.005)
    return event


def one_round(live: Any, microphone: Any, samples: np.ndarray, pause_s: float) -> float:
    """Ms from the first loud sample to `interrupted`."""
    asked_s = live.now_s
    live.ask("what is there?")
    wait(live, "answer_delta", asked_s)
    time.sleep(pause_s)
    began_s, to_clock_s = live.now_s, live.now_s - time.monotonic()
    microphone.play(samples)
    cut = wait(live, "interrupted", began_s)
    ms = 1e3 * (cut.t_s - (microphone.played_s + to_clock_s))
    wait(live, "transcript", began_s)
    time.sleep(SAID_S + 1.0)
    return float(ms)


def measure(model: Talkative, microphone: Any, folder: Path, rounds: int) -> list[float]:
    """Each round's time, printed."""
    found = []
    with edgemm.stream(
        model, camera="test://?fps=10", mic="default", wake=("nobody says this",), max_new_tokens=64
    ) as live:
        said = sounds(folder)
        time.sleep(3.0)
        for n in range(rounds):
            name, samples = said[n % len(said)]
            found.append(one_round(live, microphone, samples, 0.3 + 0.007 * n))
            print(f"  {name}: {found[-1]:.0f}", flush=True)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--answers", type=Path, help="a bundle that answers")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.rig import microphone

    if (why := microphone.missing()) is not None:
        sys.exit(why)
    if options.answers is None:
        from tests.export.exported import exported

        options.answers = exported("smolvlm").bundle
    with microphone.PipeMicrophone(tone_hz=0.0) as pipe, tempfile.TemporaryDirectory() as folder:
        os.environ.update({k: v for k, v in pipe.environment.items() if k != "HOME"})
        with edgemm.load() as hears, edgemm.load(options.answers) as answers:
            found = measure(Talkative(hears, answers), pipe, Path(folder), options.rounds)
    print(f"{time.strftime('%Y-%m-%d')}: median {np.median(found):.0f}, least {min(found):.0f}, "
          f"most {max(found):.0f} ms in {len(found)} rounds (goal {GOAL_MS:g})")  # fmt: skip


if __name__ == "__main__":
    main()
