"""Frambicus: every row teaches what it has, a question its answer, a picture its caption and boxes, a clip its story.

Towers are frozen, so their grids of a picture are the same at every epoch: they are computed once and kept beside the
run, unless pictures are augmented.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemm.errors import InputError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.loading import quieten
from edgemm.export.train.augment import Augment
from edgemm.export.train.data import Sample, Splits
from edgemm.export.train.freezing import set_dropout
from edgemm.export.train.objectives.base import Batch, Objective
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.answer_metrics import exact_match
from edgemm.tasks.boxes import Box, mean_average_precision
from edgemm.tasks.scoring import measured

Grids = list[torch.Tensor]
_FRAMES = 8
_RATE_HZ = 16_000
_WRITTEN = ("answer", "caption", "describe")
_STEERS = {"answer": "vqa_accuracy", "caption": "cider", "describe": "describe_exact_match", "detect": "map50"}


class Frambicus(Objective):
    """All tasks of one model at once; each counts by how many rows of a batch teach it."""

    fields = ("text", "answer", "objects")

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, options: TrainOptions) -> None:
        self.checkpoint, self.options, self.model, self.processor = checkpoint, options, model, processor
        self.augment = Augment(options.seed) if options.augment else None
        self._place: Path | None = None
        self._ids = {str(name): int(i) for i, name in model.config.detector_config.id2label.items()}
        model.config.label_smoothing = options.label_smoothing
        if options.dropout is not None:
            set_dropout(model, options.dropout)

    @classmethod
    def load(cls, checkpoint: Checkpoint, splits: Splits, options: TrainOptions) -> Objective:
        from edgemm.export.frambicus import FrambicusForQuestionAnswering, FrambicusProcessor

        quieten()
        model = FrambicusForQuestionAnswering.from_pretrained(checkpoint.path)
        made = cls(checkpoint, model, FrambicusProcessor.from_pretrained(checkpoint.path), options)
        has = set(splits.train.fields)
        first = "answer" if "answer" in has else "detect" if "text" not in has else "caption"
        made.metric = _STEERS["describe" if first == "caption" and "video" in has else first]
        return made

    def prepare(self, place: Path) -> None:
        self._place = place
        place.mkdir(parents=True, exist_ok=True)

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        lessons = [(task, sample) for sample in samples for task in tasks_of(sample)]
        parts = []
        for task in dict.fromkeys(task for task, _ in lessons):
            own = [sample for name, sample in lessons if name == task]
            make = self._boxes if task == "detect" else self._written
            parts.append({"task": task, "rows": len(own), "inputs": make(task, own, training=training)})
        if not parts:
            raise InputError(f"{samples[0].where} teaches nothing", hint="give text, objects, or question and answer")
        return {"parts": parts}

    def compute(self, model: Any, batch: Batch) -> torch.Tensor:
        from edgemm.export.frambicus import FrambicusForDetection

        losses = []
        for part in batch["parts"]:
            if part["task"] == "detect":
                loss = FrambicusForDetection.forward(model, **part["inputs"]).loss
            else:
                loss = model(**part["inputs"], loss_only=True).loss
            losses.append(loss * part["rows"])
        return torch.stack(losses).sum() / sum(part["rows"] for part in batch["parts"])

    def _written(self, task: str, samples: Sequence[Sample], *, training: bool) -> Batch:
        """What the decoder is called with: prompts and what it should say."""
        targets = [self._target(task, s)[0] for s in samples]
        made = self.processor.write(task, [self._asked(s) for s in samples], targets)
        return {**made, **self._senses(samples, training=training)}

    def _boxes(self, _task: str, samples: Sequence[Sample], *, training: bool) -> Batch:
        """What the detector is called with. Boxes are shares of the picture, which is stretched, never cut."""
        targets = []
        for sample in samples:
            height, width = sample.picture().shape[:2]
            found = self._target("detect", sample)
            corners = np.array([b.box_px for b in found], np.float32).reshape(-1, 4) / [width, height, width, height]
            centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
            ids = [self._ids[b.label] for b in found]
            targets.append({"class_labels": torch.tensor(ids), "boxes": torch.from_numpy(centred.astype(np.float32))})
        return {**self._senses(samples, training=training), "labels": targets}

    def _asked(self, sample: Sample) -> str:
        """The question, unless it is spoken."""
        return "" if sample.has("audio") else str(sample.values.get("question") or "")

    def _target(self, task: str, sample: Sample) -> Any:
        if task == "answer":
            return sample.texts("answer")
        if task != "detect":
            return sample.texts()
        objects = sample.get("objects")
        strange = next((n for n in objects["category"] if str(n) not in self._ids), None)
        if strange is not None:
            raise InputError(f"{sample.where}: the detector has no label {strange!r}", hint="build it with that label")
        pairs = zip(objects["category"], objects["bbox"], strict=True)
        return [Box(str(name), (x, y, x + w, y + h)) for name, (x, y, w, h) in pairs]

    def _senses(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        """Grids of all rows with the times of their frames, and their sounds."""
        seen = [self._grids(s, training=training) for s in samples]
        longest = max(len(times) for _, times in seen)
        grids = [torch.stack([_filled(g[i].float(), longest) for g, _ in seen]) for i in range(len(seen[0][0]))]
        times = torch.stack([_filled(t, longest) for _, t in seen])
        lengths = torch.tensor([len(t) for _, t in seen])
        senses: Batch = {
            "grids": grids,
            "frame_times_s": times,
            "frame_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if any(s.has("audio") for s in samples):
            senses |= self.processor.listen([s.sound(_RATE_HZ) if s.has("audio") else None for s in samples], _RATE_HZ)
        return senses

    def _grids(self, sample: Sample, *, training: bool) -> tuple[Grids, torch.Tensor]:
        """The tower's grids of a row's frames, each [F, C, h, w] in fp16, and the frames' times [F]."""
        if self._place is None or (training and self.augment):
            return self._computed(sample, training=training)
        name = sample.values.get("video") or sample.values.get("image") or sample.values.get("file_name")
        if not isinstance(name, str):
            return self._computed(sample, training=training)
        path = self._place / f"{hashlib.sha256(str(sample.root / name).encode()).hexdigest()}.npz"
        if path.is_file():
            kept = np.load(path)
            return [torch.from_numpy(kept[f"g{i}"]) for i in range(len(kept.files) - 1)], torch.from_numpy(
                kept["times"]
            )
        grids, times = self._computed(sample, training=training)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, times=times.numpy(), **{f"g{i}": grid.numpy() for i, grid in enumerate(grids)})
        partial.replace(path)
        return grids, times

    def _computed(self, sample: Sample, *, training: bool) -> tuple[Grids, torch.Tensor]:
        frames, times = self._frames(sample)
        if training and self.augment:
            frames = [self.augment.picture(f) for f in frames]
        looked = self.processor.look([frames])["pixel_values"][0]
        device = next(self.model.vision.parameters()).device
        with torch.no_grad():
            grids = self.model.vision.grids(looked.to(device))
        return [grid.half().cpu() for grid in grids], torch.from_numpy(times)

    def _frames(self, sample: Sample) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
        if not sample.has("video"):
            return [sample.picture()], np.zeros(1, np.float32)
        frames, times = sample.frames(_FRAMES)
        return list(frames), times

    def say(self, model: Any, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """By task, what is said to each row: texts, and boxes."""
        said: list[dict[str, Any]] = [{} for _ in samples]
        for task in (*_WRITTEN, "detect"):
            rows = [i for i, s in enumerate(samples) if task in tasks_of(s)]
            if rows:
                own = [samples[i] for i in rows]
                found = self._found(model, own) if task == "detect" else self._texts(model, task, own)
                for i, value in zip(rows, found, strict=True):
                    said[i][task] = value
        return said

    def _texts(self, model: Any, task: str, samples: Sequence[Sample]) -> list[str]:
        asked = self.processor.write(task, [self._asked(s) for s in samples])
        senses = self._senses(samples, training=False)
        ids = model.generate(**asked, **senses, max_new_tokens=self.options.max_new_tokens, do_sample=False)
        texts: list[str] = self.processor.batch_decode(ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _found(self, model: Any, samples: Sequence[Sample]) -> list[list[Box]]:
        from edgemm.export.frambicus import FrambicusForDetection

        out: Any = FrambicusForDetection.forward(model, **self._senses(samples, training=False))
        names = {i: name for name, i in self._ids.items()}
        best = out.logits.softmax(-1)[..., :-1].max(-1)
        found = []
        for sample, scores, classes, boxes in zip(samples, best.values, best.indices, out.pred_boxes, strict=True):
            height, width = sample.picture().shape[:2]
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
            corners = corners * torch.tensor([width, height, width, height])
            rows = zip(classes.tolist(), corners.tolist(), scores.tolist(), strict=True)
            found.append([Box(names[i], tuple(box), score) for i, box, score in rows])
        return found

    def expected(self, sample: Sample) -> dict[str, Any]:
        return {task: self._target(task, sample) for task in tasks_of(sample)}

    def judge(self, expected: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for task in (*_WRITTEN, "detect"):
            pairs = [(e[task], s[task]) for e, s in zip(expected, said, strict=True) if task in e]
            if pairs:
                metrics |= _judged(task, [e for e, _ in pairs], [s for _, s in pairs])
        return metrics

    def show(self, value: Any) -> str:
        return "; ".join(f"{task}: {_shown(task, own)}" for task, own in value.items())

    def save(self, model: Any, directory: Path) -> None:
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


def tasks_of(sample: Sample) -> tuple[str, ...]:
    """What a row teaches."""
    found = []
    if sample.has("question", "answer"):
        found.append("answer")
    elif sample.has("text"):
        found.append("describe" if sample.has("video") else "caption")
    if sample.has("objects"):
        found.append("detect")
    return tuple(found)


def _judged(task: str, expected: list[Any], said: list[Any]) -> dict[str, float]:
    if task == "detect":
        return dict(mean_average_precision(expected, said))
    if task == "describe":
        return {"describe_exact_match": exact_match(expected, said).total}
    return {name: scores.total for name, scores in measured(task, expected, said).items()}


def _shown(task: str, value: Any) -> str:
    if task != "detect":
        return value if isinstance(value, str) else " / ".join(value)
    return ", ".join(f"{b.label} {b.score:.2f}" for b in sorted(value, key=lambda b: -b.score)[:3])


def _filled(values: torch.Tensor, length: int) -> torch.Tensor:
    """The first axis filled up with zeros."""
    missing = length - len(values)
    return values if not missing else torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
