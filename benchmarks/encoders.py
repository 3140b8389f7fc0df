"""Encoders in int8 against fp32 on ONNX Runtime: how fast each runtime is, and what a whole bundle takes.

    python benchmarks/encoders.py --work /tmp/encoders --rounds 10

Checkpoints are built and exported once under --work: real weights of EfficientNet-lite0, Moonshine tiny, Whisper base
and MiniLM, and random ones of SmolVLM-256M's tower (a tile of 512 px) and of ViT-B/16 (224 px). Each contender runs in
a process of its own, in alternating rounds; in every process each encoder is loaded, run once, and then timed. Printed
are the medians of the rounds, how many times as fast as fp32 on ONNX Runtime they are, the least cosine of the outputs
to fp32's, and the bytes of the int8 bundle beside the fp32 one's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "samples" / "clip"
THREADS = 2
ENOUGH_S, MOST_CALLS = 0.5, 50
BASE = "ort-fp32"
# name: (runtime, precision, exact)
CONTENDERS: dict[str, tuple[str, str, bool | None]] = {
    BASE: ("onnxruntime", "fp32", None),
    "ort-int8": ("onnxruntime", "int8", None),
    "ov-fp32": ("openvino", "fp32", None),
    "ov-int8-exact": ("openvino", "int8", True),
    "ov-int8": ("openvino", "int8", None),
}


@dataclass(frozen=True)
class Encoder:
    """A row of the table: the checkpoint `build` writes or returns, its component, what the symbolic sizes are."""

    build: Callable[[Path], Path]
    role: str
    real: bool = True
    tokens: int = 16
    checkpoint: str = ""


def _recipe(*command: str) -> Callable[[Path], Path]:
    def build(path: Path) -> Path:
        if not path.is_dir():
            recipe = ROOT / "samples" / "recipes" / command[0]
            subprocess.run([sys.executable, recipe, *command[1:], "--out", path], check=True)
        return path

    return build


def _sample(name: str) -> Callable[[Path], Path]:
    return lambda _: ROOT / "samples" / "checkpoint" / name


def _vit(path: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    if not path.is_dir():
        ViTForImageClassification(ViTConfig(num_labels=1000)).eval().save_pretrained(path)
        ViTImageProcessorPil().save_pretrained(path)
    return path


def _smolvlm(path: Path) -> Path:
    """Its tower is whole; the language model, which is not timed, has two of its layers. A picture is one tile."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from full_size_export import smolvlm_256m

    if not path.is_dir():
        smolvlm_256m(path, layers=2)
        settings = path / "preprocessor_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_image_splitting": False}))
    return path


ENCODERS = {
    "lite0": Encoder(_sample("labels"), "model"),
    "minilm-16": Encoder(_recipe("minilm.py"), "text_encoder", checkpoint="minilm"),
    "minilm-128": Encoder(_recipe("minilm.py"), "text_encoder", tokens=128, checkpoint="minilm"),
    "moonshine": Encoder(_sample("speech"), "audio_encoder"),
    "vit-b16": Encoder(_vit, "model", real=False),
    "whisper-base": Encoder(_recipe("whisper_ct2.py", "base"), "audio_encoder"),
    "smolvlm-tower": Encoder(_smolvlm, "vision_encoder", real=False),
}


def _name(name: str) -> str:
    return ENCODERS[name].checkpoint or name


def _prepare(work: Path, names: list[str]) -> None:
    from edgemm.export.pipeline import export

    for name in names:
        checkpoint = ENCODERS[name].build(work / _name(name))
        for precision in ("fp32", "int8"):
            target = work / f"{_name(name)}-{precision}"
            if not target.is_dir():
                print(f"exporting {_name(name)} in {precision}", flush=True)
                data = CLIP if ENCODERS[name].real else _few(work / "few")
                export(checkpoint, target, precision=precision, calibrate_on=[data] if precision == "int8" else ())
        feeds = work / f"{name}.npz"
        if not feeds.is_file():
            np.savez(feeds, **_feeds(checkpoint, ENCODERS[name]))


def _few(folder: Path) -> Path:
    """Four frames of the sample clip: random weights need no more."""
    import cv2

    from edgemm.processing.media import iter_video

    if not folder.is_dir():
        folder.mkdir()
        frames = [frame.image for frame in iter_video(CLIP / "clip.mp4")]
        for number, image in enumerate(frames[:: len(frames) // 4][:4]):
            cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
    return folder


def _feeds(checkpoint: Path, encoder: Encoder) -> dict[str, np.ndarray]:
    """What the encoder is given for a picture or 6 s of sound of the sample clip; random words."""
    from edgemm.export import families
    from edgemm.export.checkpoint import find_checkpoint
    from edgemm.export.precision.calibration import load_examples

    if encoder.role == "text_encoder":
        shape = (1, encoder.tokens)
        ids = np.random.default_rng(1).integers(1000, 30_000, shape)
        return {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}
    found = find_checkpoint(checkpoint)
    plan = families.find(found.model_type).plan(found)
    made = (plan.feeds(example).get(encoder.role) for example in load_examples([CLIP]))
    feeds = next(f for f in made if f)
    # A picture cut into tiles: one of them.
    return {k: v[:1] if k == "pixel_values" else v for k, v in feeds.items()}


def _worker(contender: str, work: Path, names: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    from edgemm.bundle.opening import open_bundle
    from edgemm.runtimes.base import SessionOptions, as_numpy
    from edgemm.tasks.graphs import Graphs

    runtime, precision, exact = CONTENDERS[contender]
    for name in names:
        bundle = open_bundle(work / f"{_name(name)}-{precision}")
        entry = bundle.manifest.models[0]
        graphs = Graphs(bundle, entry, runtime, SessionOptions(threads=THREADS, exact=exact))
        start = time.perf_counter()
        session = graphs.session(ENCODERS[name].role)
        load_ms = 1e3 * (time.perf_counter() - start)
        feeds = dict(np.load(work / f"{name}.npz"))
        outputs = {k: np.array(as_numpy(v)) for k, v in session.run(feeds).items()}
        taken: list[float] = []
        while sum(taken) < ENOUGH_S and len(taken) < MOST_CALLS:
            start = time.perf_counter()
            session.run(feeds)
            taken.append(time.perf_counter() - start)
        graphs.close()
        kept = work / f"{name}.{BASE}.npz"
        if contender == BASE and not kept.is_file():
            np.savez(kept, **outputs)
        found = {"encoder": name, "ms": 1e3 * statistics.median(taken), "load_ms": load_ms}
        print(json.dumps(found | {"cosine": _cosine(outputs, dict(np.load(kept)))}), flush=True)


def _cosine(outputs: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> float:
    def of(x: np.ndarray, y: np.ndarray) -> float:
        a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    return min(of(outputs[k], base[k]) for k in base)


def _bytes(bundle: Path) -> int:
    """The bundle without engines that runtimes may have kept in it."""
    return sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file() and "engines" not in p.parts)


def _round(work: Path, names: list[str], found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    for contender in CONTENDERS:
        command = [sys.executable, __file__, "--work", str(work), "--worker", contender, "--only", *names]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            found.setdefault((row["encoder"], contender), []).append(row)


def _print(work: Path, names: list[str], found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    def middle(name: str, contender: str, what: str = "ms") -> float:
        return statistics.median(row[what] for row in found[name, contender])

    print(f"\n{'encoder':<14}{'bytes':>7}" + "".join(f"{c:>25}" for c in CONTENDERS))
    for name in names:
        share = "-"
        if ENCODERS[name].real:
            small, whole = (_bytes(work / f"{_name(name)}-{p}") for p in ("int8", "fp32"))
            share = f"{small / whole:.3f}"
        cells = "".join(
            f"{middle(name, c):9.2f} ms {middle(name, BASE) / middle(name, c):5.2f}x {found[name, c][0]['cosine']:.4f}"
            for c in CONTENDERS
        )
        print(f"{name:<14}{share:>7}{cells}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(options.worker, options.work, options.only)
        return
    sys.path.insert(0, str(ROOT))
    options.work.mkdir(parents=True, exist_ok=True)
    _prepare(options.work, options.only)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        start = time.perf_counter()
        _round(options.work, options.only, found)
        print(f"round {number + 1}: {time.perf_counter() - start:.0f} s", flush=True)
    _print(options.work, options.only, found)


if __name__ == "__main__":
    main()
