"""What `edgemm pretrain` is worth: each objective, and all jointly, against none, on few questions, three seeds.

    python samples/recipes/frambicus_assets.py --out assets
    python -m benchmarks.pretraining_study --assets assets --work study

A small Frambicus over the repository's frozen towers, its detector untrained, is pretrained on composed scenes and
clips, then learns few questions about other scenes, and is asked for colours and places in scenes on backgrounds that
training never saw. Without pretraining it begins with the same weights and learns the same questions in as many steps.
Each seed draws the weights and the order of the rows anew. What is finished stands in WORK/results and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import SEEDS, Figures, deviation, kept, plot, told
from edgemm.export.checkpoint import find_checkpoint
from edgemm.export.frambicus import FrambicusForQuestionAnswering, processor_of
from edgemm.export.frambicus.scenes import ScenesConfig, load_assets, write_clips, write_scenes
from edgemm.export.train.data import load
from edgemm.export.train.finetune import finetune
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.pretraining import OBJECTIVES
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.pretrain import Lessons, pretrain

KINDS = ("color", "where")
METRIC = "right"
NONE = "from scratch"
LESSONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hidden cells of pictures": ("pictures", ("masked_grid",)),
    "hidden cells of clips": ("clips", ("masked_grid",)),
    "hidden words": ("told", ("masked_language",)),
    "pictures with texts": ("told", ("contrastive",)),
    "captions": ("told", ("caption",)),
    "all jointly": ("mixture", OBJECTIVES),
}
"""What is pretrained by → the data set, and the objectives."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Sizes of the study."""

    scenes: int = 700  # to pretrain on
    clips: int = 60
    questioned: int = 250  # scenes whose questions are learned
    tested: int = 250
    pretrain_steps: int = 120
    clip_batch: int = 4
    steps: int = 120
    batch: int = 16
    layers: int = 2


SMALL = Setting(12, 4, 8, 4, 2, 2, 2, 4, 1)
"""A smoke test."""


def write_data(work: Path, assets: Path, setting: Setting) -> dict[str, Path]:
    """Data sets by name: those of LESSONS, `held` (what pretraining is watched by), `questions` and `test`."""
    data, raw, config = work / "data", work / "raw", ScenesConfig()
    if not (data / "test").exists():
        sprites, s = load_assets(assets), setting
        write_scenes(raw / "scenes", sprites, config, {"train": s.scenes + s.questioned, "test": s.tested})
        write_clips(raw / "clips", sprites, config, {"train": s.clips})
        rows = _rows(raw / "scenes" / "train")
        names = list(dict.fromkeys(row["image"] for row in rows))
        early = set(names[: s.scenes])
        captioned = [row for row in rows if "objects" in row and row["image"] in early]
        texts = [{"image": row["image"], "text": row["text"]} for row in captioned]
        films = [{"video": row["video"]} for row in _rows(raw / "clips" / "train")]
        _write(data / "told", texts)
        _write(data / "pictures", [{"image": row["image"]} for row in texts])
        _write(data / "clips", films)
        _write(data / "mixture", [*texts, *films])
        _write(data / "questions", [r for r in rows if r["image"] not in early and r.get("kind") in KINDS])
        _write(data / "test", [r for r in _rows(raw / "scenes" / "test") if r.get("kind") in KINDS])
    return {path.name: path for path in data.iterdir()}


def _rows(folder: Path) -> list[Row]:
    """The rows of a data set, media by their whole paths."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    return [row | {k: str((folder / row[k]).resolve()) for k in ("image", "video") if k in row} for row in rows]


def _write(folder: Path, rows: Iterable[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def draw(place: Path, layers: int, seed: int) -> Path:
    """An untrained Frambicus with few layers and a detector that finds nothing in particular."""
    torch.manual_seed(seed)
    model = FrambicusForQuestionAnswering.from_towers(
        labels=("thing",),
        text_config={"num_hidden_layers": layers, "finds": 1, "finds_in_clips": 1},
        detector_config={"width": 32, "heads": 4, "inner": 32, "decoder_layers": 1},
    )
    model.save_pretrained(place)
    processor_of().save_pretrained(place)
    return place


class Study:
    """The runs, each kept in `work` by its name."""

    def __init__(self, work: Path, assets: Path, setting: Setting) -> None:
        self.work, self.setting = work, setting
        self.data = write_data(work, assets, setting)

    def options(self, steps: int, batch: int, seed: int) -> TrainOptions:
        """One run's choices; nothing is judged or written before its end."""
        return TrainOptions(
            steps=steps, batch=batch, learning_rate=1e-3, warmup=0.1, weight_decay=0.03, evaluate_every=steps,
            save_every=steps, evaluate_limit=8, max_new_tokens=6, tower_cache=str(self.work / "towers"), seed=seed,
        )  # fmt: skip

    def run(self, name: str, seed: int) -> Figures:
        """Draw, pretrain by the lessons of that name, learn the questions, and be judged."""
        s, place = self.setting, self.work / "runs" / f"{name.replace(' ', '-')}-{seed}"
        shutil.rmtree(place, ignore_errors=True)
        checkpoint, found = draw(place / "drawn", s.layers, seed), {}
        if name != NONE:
            data, objectives = LESSONS[name]
            options = self.options(s.pretrain_steps, s.clip_batch if data == "clips" else s.batch, seed)
            lessons, rows = Lessons(dict.fromkeys(objectives, 1.0)), self.data[data]
            few = _first(rows, place / "held", 8)
            report = pretrain(
                checkpoint, rows, place / "pretrained", lessons=lessons, options=options, validation=few, test=few
            )
            checkpoint = report.checkpoint
            for objective, loss in report.metrics_after.items():
                found |= {f"{objective} before": report.metrics_before[objective], objective: loss}
        few, options = _first(self.data["test"], place / "few", 8), self.options(s.steps, s.batch, seed)
        tuned = finetune(
            checkpoint,
            self.data["questions"],
            place / "tuned",
            task="answer",
            options=options,
            validation=few,
            test=few,
        )
        found |= self.judged(tuned.checkpoint, options)
        shutil.rmtree(place)
        return found

    def judged(self, checkpoint: Path, options: TrainOptions) -> dict[str, float]:
        """Exact answers in percent, of all questions and by kind."""
        splits, source = load(self.data["questions"], test=self.data["test"]), find_checkpoint(checkpoint)
        objective = registry.find(source, "answer").load(source, splits, options)
        objective.prepare(self.work / "towers")
        objective.model.eval()
        right = defaultdict(list)
        with torch.no_grad():
            for start in range(0, len(splits.test), 32):
                rows = [splits.test[i] for i in range(start, min(start + 32, len(splits.test)))]
                for row, said in zip(rows, objective.say(objective.model, rows), strict=True):
                    hit = said["answer"] == row.get("answer")
                    right[METRIC].append(hit)
                    right[row.get("kind")].append(hit)
        return {kind: 100 * statistics.mean(hits) for kind, hits in right.items()}


def _first(data: Path, place: Path, count: int) -> Path:
    _write(place, _rows(data)[:count])
    return place


def commonest(data: Mapping[str, Path]) -> float:
    """Exact answers in percent of who knows each kind's commonest answer alone."""
    answers = {kind: [r["answer"] for r in _rows(data["questions"]) if r["kind"] == kind] for kind in KINDS}
    said = {kind: statistics.mode(own) for kind, own in answers.items()}
    return 100 * statistics.mean(row["answer"] == said[row["kind"]] for row in _rows(data["test"]))


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Mean ± deviation over the seeds, and the differences of each seed to the one without pretraining."""
    lines = [f"| | right, % | more than from scratch | {' | '.join(KINDS)} |", "|---" * (3 + len(KINDS)) + "|"]
    base = [run[METRIC] for run in found[NONE]]
    for name, runs in found.items():
        values = [run[METRIC] for run in runs]
        more = [value - own for value, own in zip(values, base, strict=True)]
        gained = "" if name == NONE else f"{statistics.mean(more):+.1f} ± {deviation(more):.1f}"
        kinds = [f"{statistics.mean(run[kind] for run in runs):.1f}" for kind in KINDS]
        lines.append(f"| {name} | {told(values)} | {gained} | {' | '.join(kinds)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not finished, print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="what frambicus_assets.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="data, checkpoints and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--smoke", action="store_true", help="sizes that say nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("pretraining.png"))
    chosen = parser.parse_args(argv)
    study = Study(chosen.work, chosen.assets, SMALL if chosen.smoke else Setting())
    found: dict[str, list[Figures]] = {name: [] for name in (NONE, *LESSONS)}
    for seed in chosen.seeds:
        for name, runs in found.items():
            file = f"{name.replace(' ', '-')}-{seed}"
            runs.append(kept(chosen.work, file, lambda n=name, s=seed: study.run(n, s)))
    print(f"the commonest answers: {commonest(study.data):.1f} %")
    print(table(found))
    plot({name: [run[METRIC] for run in runs] for name, runs in found.items()}, "right answers, %", chosen.output)


if __name__ == "__main__":
    main()
