"""What `edgemm distill` is worth: students of half the depth, and weights in int4, on a real metric, three seeds.

    python -m benchmarks.distillation_study --work study

A TrOCR reads pictures of four of scikit-learn's handwritten digits in noise; a number is right if all of it is. The
teacher learns from many pictures, its students from few, in equally many steps. Other glyphs are in the test. Rows:

* `drawn alone` and `kept alone`: students that learn from labels, drawn at random or with the teacher's layers;
* `distilled`: as `kept alone`, with the teacher's distribution at 2.0, half of the loss (`--hard 0.5`) or all (`0`);
  both also with all of the teacher's pictures, and more steps;
* int4: the teacher rounded to the nearest, compensated by examples as `export --int4` does (GPTQ, on ONNX Runtime), and
  trained by `distill --qat int4` from the same start; the last two also with one step a column instead of blocks.

What is finished stands in WORK/results and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

import edgemm
from benchmarks.study import SEEDS, Figures, deviation, kept, plot, told
from edgemm.export.pipeline import export
from edgemm.export.precision import compensation
from edgemm.export.train.distill import Teaching, distill
from edgemm.export.train.finetune import TrainReport, finetune
from edgemm.export.train.options import TrainOptions
from edgemm.measure.evaluate import evaluate

METRIC = "exact_match"
EDGE_PX, CELL_PX, DIGITS = 32, 16, 4
NOISE = 0.2  # deviation of a pixel's noise, of the range from paper to ink
SPECIALS = ("<s>", "<pad>", "</s>")


@dataclass(frozen=True)
class Setting:
    """Sizes of the study. `depth` is that of the teacher's encoder and of its decoder."""

    depth: int = 4
    width: int = 64
    teacher_rows: int = 3000
    student_rows: int = 300
    test_rows: int = 600
    teacher_steps: int = 700
    student_steps: int = 150
    long_steps: int = 400
    qat_steps: int = 100
    batch: int = 32


SMALL = Setting(2, 64, 12, 8, 4, 2, 2, 2, 2, 4)
"""A smoke test."""

ALL = "all of the teacher's pictures"
HALVES = {
    "kept alone": (1.0, "student"),
    "distilled, hard 0.5": (0.5, "student"),
    "distilled, hard 0": (0.0, "student"),
    f"kept alone, {ALL}": (1.0, "teacher"),
    f"distilled, hard 0, {ALL}": (0.0, "teacher"),
}
"""Students of half the depth with the teacher's layers → the share of the labels, and what they learn from."""

COLUMN = "int4, one step a column"


def write_numbers(place: Path, glyphs: np.ndarray, digits: np.ndarray, count: int, seed: int) -> Path:
    """A data set of `count` pictures of numbers, of `glyphs` [N, 8, 8] that show `digits` [N]."""
    if (place / "metadata.jsonl").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        picked = rng.integers(len(glyphs), size=DIGITS)
        ink = np.zeros((EDGE_PX, EDGE_PX), np.float32)
        for place_of, glyph in enumerate(glyphs[picked]):
            row, column = divmod(place_of, EDGE_PX // CELL_PX)
            edge = int(rng.integers(14, CELL_PX + 1))
            y, x = (int(rng.integers(CELL_PX - edge + 1)) + CELL_PX * at for at in (row, column))
            ink[y : y + edge, x : x + edge] = cv2.resize(glyph, (edge, edge)) * rng.uniform(0.5, 1.0)
        noisy = 0.25 + 0.5 * ink + 0.5 * NOISE * rng.standard_normal(ink.shape)
        cv2.imwrite(str(place / f"{i}.png"), np.rint(255 * noisy.clip(0, 1)).astype(np.uint8))
        rows.append({"image": f"{i}.png", "text": "".join(map(str, digits[picked]))})
    (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def write_data(work: Path, setting: Setting) -> dict[str, Path]:
    """Data sets for the teacher, its students, steering and judging; the last two have glyphs of their own."""
    from sklearn.datasets import load_digits

    known = load_digits()
    glyphs, digits = (known.images / 16).astype(np.float32), known.target
    order = np.random.default_rng(0).permutation(len(glyphs))
    train, held = order[:1200], order[1200:]
    counts = {"teacher": setting.teacher_rows, "student": setting.student_rows}
    made = {n: write_numbers(work / "data" / n, glyphs[train], digits[train], c, 1) for n, c in counts.items()}
    for seed, (name, count) in enumerate({"validation": 16, "test": setting.test_rows}.items(), 2):
        made[name] = write_numbers(work / "data" / name, glyphs[held], digits[held], count, seed)
    return made


def draw(place: Path, depth: int, width: int, seed: int) -> Path:
    """An untrained TrOCR whose tokens are bytes."""
    if place.exists():
        return place
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    bos, pad, eos = (tokenizer.token_to_id(name) for name in SPECIALS)
    encoder = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=2 * width,
        image_size=EDGE_PX, patch_size=CELL_PX, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = TrOCRConfig(
        vocab_size=tokenizer.get_vocab_size(), d_model=width, cross_attention_hidden_size=width, decoder_layers=depth,
        decoder_attention_heads=4, decoder_ffn_dim=2 * width, max_position_embeddings=32, dropout=0.0, init_std=0.1,
        pad_token_id=pad, bos_token_id=bos, eos_token_id=eos,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, tie_word_embeddings=False)
    config.decoder_start_token_id, config.pad_token_id = eos, pad
    torch.manual_seed(seed)
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config = GenerationConfig(decoder_start_token_id=eos, pad_token_id=pad, eos_token_id=eos)
    model.save_pretrained(place)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(place)
    ViTImageProcessorPil(size={"height": EDGE_PX, "width": EDGE_PX}).save_pretrained(place)
    return place


class Study:
    """The runs, each kept in `work` by its name."""

    def __init__(self, work: Path, setting: Setting, seeds: Sequence[int] = SEEDS) -> None:
        self.work, self.setting, self.seeds = work, setting, seeds
        self.data = write_data(work, setting)
        self.teacher = work / "teacher"

    def options(self, steps: int, rate: float, seed: int) -> TrainOptions:
        """One run's choices; it is judged at its end alone."""
        return TrainOptions(
            steps=steps, batch=self.setting.batch, learning_rate=rate, warmup=0.1, weight_decay=0.01, metric=METRIC,
            evaluate_every=steps, save_every=steps, max_new_tokens=DIGITS + 2, seed=seed,
        )  # fmt: skip

    def _finetuned(self, start: Path, target: Path, data: str, options: TrainOptions) -> Figures:
        more = {"validation": self.data["validation"], "test": self.data["test"], "overwrite": True}
        return _figures(finetune(start, self.data[data], target, options=options, **more))

    def _distilled(self, name: str, teaching: Teaching, data: str, options: TrainOptions) -> Figures:
        more = {"validation": self.data["validation"], "test": self.data["test"], "overwrite": True}
        target = self.work / "students" / name
        report = distill(self.teacher, self.data[data], target, teaching=teaching, options=options, **more)
        return _figures(report)

    def taught(self) -> float:
        """Train the teacher; returns its metric."""
        s = self.setting
        start, options = draw(self.work / "drawn", s.depth, s.width, 0), self.options(s.teacher_steps, 1e-3, 0)
        found = kept(self.work, "teacher", lambda: self._finetuned(start, self.teacher, "teacher", options))
        return found[METRIC]

    def drawn(self, seed: int) -> Figures:
        """A student drawn at random, with labels alone."""
        s, name = self.setting, f"drawn-{seed}"
        start = draw(self.work / f"half-drawn-{seed}", s.depth // 2, s.width, seed)
        options = self.options(s.student_steps, 1e-3, seed)
        return self._finetuned(start, self.work / "students" / name, "student", options)

    def half(self, name: str, hard: float, data: str, seed: int) -> Figures:
        """A student with half of the teacher's layers; `hard` is the share of the labels."""
        steps = self.setting.student_steps if data == "student" else self.setting.long_steps
        return self._distilled(f"{name}-{seed}", Teaching(hard=hard), data, self.options(steps, 5e-4, seed))

    def students(self) -> dict[str, list[float]]:
        """The metrics of all students of half the depth, by seed."""
        rows = {"drawn alone": [kept(self.work, f"drawn-{s}", lambda s=s: self.drawn(s))[METRIC] for s in self.seeds]}
        for what, (hard, data) in HALVES.items():
            name = f"{'half' if data == 'student' else 'all'}-{hard}"
            rows[what] = [
                kept(self.work, f"{name}-{s}", lambda s=s, n=name, h=hard, d=data: self.half(n, h, d, s))[METRIC]
                for s in self.seeds
            ]
        return rows

    def trained_for_int4(self, name: str, seed: int) -> Figures:
        """The teacher's own shape, trained on int4's grid."""
        options = self.options(self.setting.qat_steps, 2e-4, seed)
        return self._distilled(f"{name}-{seed}", Teaching(qat="int4", hard=0.5), "student", options)

    def exported(self, name: str, checkpoint: Path, precision: str) -> Figures:
        """The metric of a bundle on ONNX Runtime."""
        bundle = self.work / "bundles" / name
        calibrate_on = [] if precision == "fp32" else [self.data["student"]]
        export(checkpoint, bundle, precision=precision, calibrate_on=calibrate_on, overwrite=True)  # type: ignore[arg-type]
        with edgemm.load(bundle, runtime="onnxruntime") as model:
            return {METRIC: _exact(model, self.data["test"])}

    def int4(self) -> dict[str, list[float]]:
        """The metrics of the teacher in int4, by how it was rounded."""
        trained = [kept(self.work, f"qat-{s}", lambda s=s: self.trained_for_int4("qat", s)) for s in self.seeds]
        with patch.object(compensation, "block_of", lambda rows: rows):
            harsh = [kept(self.work, f"harsh-{s}", lambda s=s: self.trained_for_int4("harsh", s)) for s in self.seeds]
        bundles = {"fp32, exported": ("fp32", self.teacher, "fp32"), "GPTQ, exported": ("gptq", self.teacher, "int4")}
        bundles |= {
            f"trained, exported {s}": (f"qat-bundle-{s}", self.work / "students" / f"qat-{s}", "int4")
            for s in self.seeds
        }
        ran = {
            what: kept(self.work, name, lambda n=name, c=path, p=precision: self.exported(n, c, p))[METRIC]
            for what, (name, path, precision) in bundles.items()
        }
        return {
            "fp32, exported": [ran["fp32, exported"]],
            "int4 to the nearest": [trained[0]["before"]],
            "int4, GPTQ, exported": [ran["GPTQ, exported"]],
            "int4, trained": [figures[METRIC] for figures in trained],
            "int4, trained, exported": [ran[f"trained, exported {s}"] for s in self.seeds],
            f"{COLUMN} to the nearest": [harsh[0]["before"]],
            f"{COLUMN}, trained": [figures[METRIC] for figures in harsh],
        }


def _figures(report: TrainReport) -> Figures:
    return {METRIC: report.metrics_after[METRIC], "before": report.metrics_before[METRIC]}


def _exact(model: edgemm.Model, data: Path) -> float:
    """Numbers that were read without a mistake, in percent."""
    examples = evaluate(model, data).examples
    right = [example.said.strip() in example.references for example in examples]
    return 100 * statistics.mean(right)


def closed(low: Sequence[float], high: float, reached: Sequence[float]) -> str:
    """The share of the gap from the mean of `low` to `high` that the mean of `reached` closes, and what gap that is."""
    gap = high - statistics.mean(low)
    spread = max(deviation(low), deviation(reached))
    enough = gap >= max(3 * spread, 3.0)
    if not enough:
        return f"the gap of {gap:.1f} is too small to judge by"
    return f"{(statistics.mean(reached) - statistics.mean(low)) / gap:.0%} of {gap:.1f}"


def table(teacher: float, students: dict[str, list[float]], int4: dict[str, list[float]]) -> str:
    """Both questions as one Markdown table."""
    lines = ["| | numbers read whole, % | closes of the gap to the teacher |", "|---|---|---|"]
    lines.append(f"| teacher | {teacher:.1f} | |")
    for name, values in students.items():
        low = f"kept alone, {ALL}" if name.endswith(ALL) else "kept alone"
        share = closed(students[low], teacher, values) if "distilled" in name else ""
        lines.append(f"| half depth, {name} | {told(values)} | {share} |")
    for name, values in int4.items():
        low = f"{COLUMN if name.startswith(COLUMN) else 'int4'} to the nearest"
        share = closed(int4[low], teacher, values) if "GPTQ" in name or "trained" in name else ""
        lines.append(f"| {name} | {told(values)} | {share} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not finished, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="data, checkpoints and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--smoke", action="store_true", help="sizes that say nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("distillation.png"))
    chosen = parser.parse_args(argv)
    study = Study(chosen.work, SMALL if chosen.smoke else Setting(), chosen.seeds)
    teacher, students, int4 = study.taught(), study.students(), study.int4()
    print(table(teacher, students, int4))
    plot({"teacher": [teacher], **students, **int4}, "numbers read whole, %", chosen.output)


if __name__ == "__main__":
    main()
