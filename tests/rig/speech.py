"""Real and spoken sentences with their texts, for word error rates.

`librivox_clips` are five recordings of a human reader; `flite_corpus` is as long as a test wants,
spoken by a synthesizer, clean or in noise. Both need Debian packages and say which when they lack.
"""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgemm.errors import SourceError

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
MARGIN_S = 0.3
TRANSCRIPT = re.compile(r"<s>\s*(?P<text>.*?)\s*</s>\s*\((?P<name>[^)]+)\)")

WORDS = {
    "who": "the young teacher|my friend|the old captain|her sister|a tall stranger|the doctor|"
    "our driver|the quiet gardener|his uncle|the engineer|a tired nurse|the baker",
    "did": "carried|found|painted|repaired|borrowed|cleaned|noticed|dropped|opened|measured|polished|forgot",
    "how": "wooden|heavy|yellow|broken|silver|narrow|dusty|beautiful|simple|empty|round|expensive",
    "what": "basket|window|bicycle|camera|ladder|blanket|bottle|mirror|engine|letter|umbrella|piano|lamp|suitcase",
    "where": "in the kitchen|behind the station|near the river|on the balcony|under the bridge|"
    "beside the library|in the garden|at the market|outside the museum|along the fence",
    "when": "after lunch|early this morning|before the storm|last summer|on Monday evening|"
    "during the meeting|late at night|just before sunset|at the weekend|in the middle of winter",
    "beast": "horse|cat|rabbit|squirrel|donkey|pigeon|dog|turtle|fox|goose",
    "moved": "slept|waited|ran in circles|jumped|rested|was hiding|walked slowly|looked for food",
    "weather": "the rain stops|the wind is strong|it gets dark|the snow melts|the sky is clear|"
    "the fog comes back|the sun is shining|it becomes too cold",
    "plan": "we should walk home|they will paint the roof|you can borrow my coat|nobody will come|"
    "the children may play outside|I want to cook some soup|we must close the gate",
    "food": "bread|honey|rice|cheese|soup|fresh fruit|butter|chocolate|salad|coffee",
    "robot": "pick up|push aside|look at|move around|bring back|point at|stop beside|follow",
}
PATTERNS = (
    "{when} {who} {did} the {how} {what} {where}",
    "the {how} {what} {where} belongs to {who}",
    "a small {beast} {moved} {where} while {who} made some {food}",
    "if {weather} then {plan}",
    "could you please {robot} the {how} {what} {where}",
    "{who} never liked {food} but always ate {food} {when}",
    "I think that the {beast} {moved} {where} {when}",
    "please tell {who} that the {how} {what} is still {where}",
)


def librivox_clips() -> list[tuple[Path, str]]:
    """(wav file, lower-case transcript) of the LibriVox recordings, 16 kHz mono, 71 words in all.

    The transcripts are the package's own. Raises SourceError when the package is not installed.
    """
    listing = LIBRIVOX / "transcription"
    if not listing.is_file():
        raise SourceError(
            f"no LibriVox recordings in {LIBRIVOX}",
            hint="run: apt-get install pocketsphinx-testdata",
        )
    found = TRANSCRIPT.finditer(listing.read_text(encoding="utf-8"))
    return [(LIBRIVOX / f"{match['name']}.wav", match["text"]) for match in found]


def sentences(words: int, seed: int = 2) -> list[str]:
    """English sentences without marks or digits, at least `words` words, the same every time."""
    chosen: list[str] = []
    count = 0
    for sentence in _endless_sentences(random.Random(seed)):
        if count >= words:
            return chosen
        chosen.append(sentence)
        count += len(sentence.split())
    return chosen


def _endless_sentences(chance: random.Random) -> Iterator[str]:
    """Each list of words and of patterns is dealt out before one of its items comes again."""
    decks: dict[str, list[str]] = {}

    def deal(slot: re.Match[str]) -> str:
        deck = decks.setdefault(slot[1], [])
        if not deck:
            deck += chance.sample(WORDS[slot[1]].split("|"), k=WORDS[slot[1]].count("|") + 1)
        return deck.pop()

    while True:
        for pattern in chance.sample(PATTERNS, k=len(PATTERNS)):
            yield re.sub(r"\{(\w+)\}", deal, pattern)


def flite_corpus(
    directory: Path,
    words: int,
    voices: Sequence[str] = ("slt", "rms"),
    noise_snr_db: Sequence[float | None] = (None, 15.0),
) -> list[tuple[Path, str]]:
    """(wav file, text) of spoken sentences, 16 kHz mono, at least `words` words in all.

    The sentences are dealt to the voices and noises in turn, so that each of them gets its share,
    with 0.3 s before and after the speech. `noise_snr_db` is the ratio of the speech's power to
    that of pink noise, which is close to a room's; None leaves the speech clean.
    Raises SourceError when flite is not installed or cannot speak.
    """
    if shutil.which("flite") is None:
        raise SourceError("the synthesizer flite is missing", hint="run: apt-get install flite")
    directory.mkdir(parents=True, exist_ok=True)
    manners = itertools.cycle(itertools.product(voices, noise_snr_db))
    corpus: list[tuple[Path, str]] = []
    for number, (text, manner) in enumerate(zip(sentences(words), manners, strict=False)):
        voice, snr_db = manner
        kind = "clean" if snr_db is None else f"{snr_db:g}db"
        path = directory / f"{number:04d}-{voice}-{kind}.wav"
        _speak(text, voice, path)
        _place_in_room(path, snr_db, seed=number)
        corpus.append((path, text))
    return corpus


def _speak(text: str, voice: str, path: Path) -> None:
    command = ["flite", "-voice", voice, "-t", f"{text}.", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not path.is_file():
        raise SourceError(f"flite could not speak as {voice}: {done.stderr.strip()}")


def _place_in_room(path: Path, snr_db: float | None, seed: int) -> None:
    """Rewrite a wav with `MARGIN_S` around the speech and, if a ratio is given, with noise."""
    with wave.open(str(path)) as file:
        parameters = file.getparams()
        speech = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)
    sound = np.pad(speech, round(MARGIN_S * parameters.framerate))
    if snr_db is not None:
        power = np.mean(speech**2) / 10 ** (snr_db / 10)
        sound += np.sqrt(power) * _pink_noise(len(sound), parameters.framerate, seed)
    samples = np.clip(np.rint(sound), -32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams(parameters)
        file.writeframes(samples.tobytes())


def _pink_noise(count: int, rate_hz: int, seed: int) -> np.ndarray:
    """Noise of power 1 whose density falls with frequency, flat below 50 Hz; float64 [count]."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    frequencies_hz = np.fft.rfftfreq(count, 1 / rate_hz)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies_hz, 50.0)), count)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))
