"""Word error rates of the live pipeline and of the same model offline, on the same speech.

    python benchmarks/streaming_wer.py --words 2000 --rounds 4
    python benchmarks/streaming_wer.py --words 1000 --live     # in real time: partial transcripts too

flite in three voices, clean and at 15 dB, and the five LibriVox clips, a sentence each, with a pause before each one in
which its room goes on sounding. The pipeline hears all of it as one recording; offline the model is given one clip
after the other. With --live it is also counted how often a partial took back what an earlier one called stable.

A small model hears one word in seven otherwise when its sound begins some milliseconds earlier, so every round begins
each sentence a little later, for the pipeline and offline; what counts is the mean of the rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import wave
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgemm
from edgemm.live.events import Event, TranscriptEvent
from edgemm.live.options import SpeechOptions
from edgemm.live.sinks.base import Item, SinkContext, SinkLimits
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.tasks.metrics import wer

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ = 16_000
VOICES = ("slt", "rms", "awb")
PAUSE_S = 1.0
ROOM_S = 0.2  # so much of a clip's beginning is without speech
SHIFT_S = 0.013  # a round later
GOAL_POINTS = 1.0


@dataclass(frozen=True)
class Sentence:
    """What is said, its sound at 16 kHz, and where in the recording that begins."""

    text: str
    samples: np.ndarray
    start_s: float

    @property
    def middle_s(self) -> float:
        return self.start_s + len(self.samples) / RATE_HZ / 2


class Told:
    """A sink that keeps transcripts, and when the recording began."""

    name, essential = "told", True
    limits = SinkLimits(events=100_000)

    def __init__(self) -> None:
        self.transcripts: list[TranscriptEvent] = []
        self.errors: list[Event] = []

    def open(self, context: SinkContext) -> None:
        self._context = context

    def handle(self, item: Item) -> None:
        if isinstance(item, TranscriptEvent):
            self.transcripts.append(item)
        elif isinstance(item, Event) and item.type in ("error", "audio_gap"):
            self.errors.append(item)

    def close(self) -> None:
        pass

    @property
    def epoch_s(self) -> float:
        return self._context.epoch_s() or 0.0


def speech(folder: Path, words: int) -> list[tuple[Path, str]]:
    """The clips and their texts."""
    sys.path.insert(0, str(ROOT))
    from tests.rig.speech import flite_corpus, librivox_clips

    return librivox_clips() + flite_corpus(folder, words, voices=VOICES)


def recording(folder: Path, clips: list[tuple[Path, str]], shift_s: float) -> tuple[Path, list[Sentence]]:
    """One wav file with all of it, each clip begun so much sooner, in the sound of its room."""
    said, sound, at = [], [], 0
    for path, text in clips:
        samples = to_mono_16k(*load_audio(path))
        room = samples[: round(ROOM_S * RATE_HZ)]
        samples = np.pad(samples, (round(shift_s * RATE_HZ), 0), mode="symmetric")
        pause = np.pad(room, (round(PAUSE_S * RATE_HZ), 0), mode="symmetric")[: -len(room)]
        said.append(Sentence(text, samples, (at + len(pause)) / RATE_HZ))
        sound += [pause, samples]
        at += len(pause) + len(samples)
    whole = folder / "recording.wav"
    with wave.open(str(whole), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(np.concatenate(sound), -1, 1) * 32767).astype("<i2").tobytes())
    return whole, said


def hear(model: edgemm.Model, path: Path, how: SpeechOptions, *, live: bool) -> Told:
    """The whole recording through the pipeline."""
    told = Told()
    given = {"camera": "none", "mic": str(path), "tasks": ("transcribe",), "speech": how}
    with edgemm.stream(model, sinks=(told,), as_fast_as_possible=not live, **given) as running:
        running.wait()
    return told


def by_sentence(told: Told, said: list[Sentence]) -> list[list[TranscriptEvent]]:
    """The finals of each sentence: those whose middle is nearest to its own."""
    middles_s, found = np.array([s.middle_s for s in said]), [list[TranscriptEvent]() for _ in said]
    for event in told.transcripts:
        if event.final:
            middle_s = (event.t_start_s + event.t_end_s) / 2 - told.epoch_s
            found[int(np.argmin(np.abs(middles_s - middle_s)))].append(event)
    return found


def promises(told: Told) -> tuple[int, int, int, int]:
    """How many partials there were, how many took back what was stable, how many utterances had something stable, and
    how many of their finals say it otherwise."""
    stable: dict[int, str] = defaultdict(str)
    partials = broken = otherwise = 0
    for event in told.transcripts:
        before = stable[event.utterance]
        if event.final:
            otherwise += not event.text.startswith(before)
            continue
        partials += 1
        broken += not event.text.startswith(before) or event.stable_chars < len(before)
        stable[event.utterance] = event.text[: event.stable_chars]
    return partials, broken, sum(map(bool, stable.values())), otherwise


def show_differences(said: list[Sentence], offline: list[str], finals: list[list[TranscriptEvent]]) -> None:
    """The sentences which the pipeline heard worse or better."""
    for sentence, alone, events in zip(said, offline, finals, strict=True):
        streamed = " ".join(event.text for event in events)
        errors = wer([sentence.text], [alone]), wer([sentence.text], [streamed])
        if errors[0] != errors[1]:
            print(f"  {errors[0]:5.1f} → {errors[1]:5.1f} in {len(events)}: {sentence.text}\n      {alone}\n      "
                  f"{' | '.join(event.text for event in events)}")  # fmt: skip


def one_round(
    model: edgemm.Model, path: Path, said: list[Sentence], how: SpeechOptions, options: argparse.Namespace
) -> tuple[float, float]:
    """Prints what was heard of one recording; the two word error rates."""
    texts = [sentence.text for sentence in said]
    offline = [model.transcribe(sentence.samples).text for sentence in said]
    told = hear(model, path, how, live=options.live)
    finals = by_sentence(told, said)
    streamed = [" ".join(event.text for event in events) for events in finals]
    if options.show:
        show_differences(said, offline, finals)
    rates, counts = (wer(texts, offline), wer(texts, streamed)), [len(events) for events in finals]
    print(f"word error rate offline {rates[0]:.2f} %, streamed {rates[1]:.2f} %; unlike words "
          f"{wer(offline, streamed):.2f} %; sentences in one utterance {counts.count(1)}, in several "
          f"{sum(n > 1 for n in counts)}, in none {counts.count(0)}; errors and gaps {len(told.errors)}")  # fmt: skip
    if options.live:
        partials, broken, promised, otherwise = promises(told)
        print(f"{partials} partials, of which {broken} took back what was stable; "
              f"{otherwise} of {promised} finals say otherwise")  # fmt: skip
    sys.stdout.flush()
    return rates


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--show", action="store_true", help="print the sentences that were heard differently")
    parser.add_argument("--pre-roll", type=float, default=SpeechOptions.pre_roll_s)
    parser.add_argument("--padding", type=float, default=SpeechOptions.padding_s)
    options = parser.parse_args()
    how = SpeechOptions(pre_roll_s=options.pre_roll, padding_s=options.padding)
    with tempfile.TemporaryDirectory() as folder, edgemm.load(runtime=options.runtime) as model:
        clips = speech(Path(folder), options.words)
        words = sum(len(text.split()) for _, text in clips)
        print(f"{time.strftime('%Y-%m-%d')}: {words} words in {len(clips)} sentences", flush=True)
        rounds = []
        for n in range(options.rounds):
            path, said = recording(Path(folder), clips, n * SHIFT_S)
            rounds.append(one_round(model, path, said, how, options))
    offline, streamed = np.mean(rounds, axis=0)
    print(f"mean of {len(rounds)}: offline {offline:.2f} %, streamed {streamed:.2f} %, "
          f"difference {streamed - offline:+.2f} (goal {GOAL_POINTS:g})")  # fmt: skip


if __name__ == "__main__":
    main()
