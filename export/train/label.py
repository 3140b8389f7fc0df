"""Labelling: what a teacher says to every row of a data set becomes a data set of its own."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgemm.bundle.files import write_atomically
from edgemm.bundle.writing import check_target, writing
from edgemm.errors import InputError, UsageError
from edgemm.export.checkpoint import Checkpoint, find_checkpoint
from edgemm.export.locate import located
from edgemm.export.train.data import Sample, Samples, named_splits
from edgemm.export.train.finetune import part_for, rows_digest
from edgemm.export.train.labelling import Kept, Progress, keep_answers
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.metadata import MEDIA, METADATA

_MARK = {"marker": METADATA, "what": "data set"}
_MEDIA_FOLDER = "media"


@dataclass(frozen=True)
class LabelReport:
    """What was written to `data`. `labelled` rows were answered now, `resumed` ones by a run that was cut off."""

    data: Path
    task: str
    rows: int
    labelled: int
    resumed: int
    seconds: float
    rows_per_s: float


class Every(Sequence[Sample]):
    """The rows of all splits, one after the other."""

    def __init__(self, splits: Mapping[str, Samples]) -> None:
        self._splits = dict(splits)
        self._places = [(name, i) for name, rows in self._splits.items() for i in range(len(rows))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        name, number = self._places[index]
        return self._splits[name][number]

    def split_of(self, index: int) -> str:
        """The name of a row's split."""
        return self._places[index][0]


@dataclass(frozen=True)
class Teacher:
    """Where a teacher is, and how it is asked: all that another process needs to ask it."""

    checkpoint: Path
    task: str | None
    options: TrainOptions

    def ready(self) -> Objective:
        """The teacher on this process's device. Raises what `Objective.as_it_is` does."""
        source = find_checkpoint(self.checkpoint)
        objective = registry.find(source, self.task).as_it_is(source, self.options)
        objective.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return objective


def label(
    teacher: Path | str,
    data: Path,
    target: Path,
    *,
    task: str | None = None,
    batch: int = 8,
    max_new_tokens: int = 64,
    on_ray: bool = False,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda _what, _share: None,
) -> LabelReport:
    """Let `teacher` (a directory, a hub id or an adapter) answer every row of `data`; write them to `target`.

    The rows keep what they have but for the field that the task is learned from; files are linked, or copied where
    they cannot be. With `on_ray` the rows are spread over `workers` of a Ray cluster (that of `RAY_ADDRESS`, else one
    here), 0 being one for each of its GPUs, else for every second of its processors; teacher and data must then lie
    where every machine sees them. Answers are kept in `<target>.labelling` as they come: a run that was killed goes on.

    Raises CheckpointError for a teacher that cannot be loaded, UsageError for one whose answers are no labels or an
    unfinished run of other choices, InputError that names a useless row, RuntimeUnavailable where Ray is not installed.
    """
    target = target.absolute()
    check_target(target, overwrite=overwrite, **_MARK)
    start = time.perf_counter()
    with located(teacher) as path:
        source = part_for(find_checkpoint(path), task)
        splits = named_splits(data, registry.events_for(source.model_type, task))
        rows = Every(splits)
        asked = Teacher(source.path.resolve(), task, TrainOptions(batch=batch, max_new_tokens=max_new_tokens))
        kept = Kept(_place(target, source, splits, asked, overwrite=overwrite))
        resumed = len(kept.read())
        if on_ray:
            from edgemm.export.train.on_ray import keep_answers_on_ray

            keep_answers_on_ray(asked, data.resolve(), kept, len(rows), workers=workers, progress=progress)
        else:
            progress("loading the teacher", resumed / len(rows))
            keep_answers(asked.ready(), rows, kept, progress=progress)
    fields = kept.read()
    with writing(target, overwrite=overwrite, **_MARK) as partial:
        named = _lines(rows, fields, partial, split=len(splits) > 1)
        (partial / METADATA).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named))
    shutil.rmtree(kept.place, ignore_errors=True)
    seconds, labelled = time.perf_counter() - start, len(rows) - resumed
    learned = task or registry.tasks_of(source.model_type)[0]
    return LabelReport(target, learned, len(rows), labelled, resumed, seconds, labelled / seconds)


def _place(target: Path, source: Checkpoint, splits: Mapping[str, Samples], asked: Teacher, *, overwrite: bool) -> Path:
    """Where answers are kept, with a note of what they are answers to."""
    place = target.with_name(f"{target.name}.labelling")
    about = {
        "teacher": [source.model_type, *([f.name, f.stat().st_size] for f in source.weight_files)],
        "task": asked.task,
        "max_new_tokens": asked.options.max_new_tokens,
        "rows": {name: rows_digest(rows) for name, rows in splits.items()},
    }
    note = place / "run.json"
    if note.is_file() and json.loads(note.read_text()) != about:
        if any(place.glob("said-*")) and not overwrite:
            raise UsageError(
                f"{place} holds unfinished labels of another teacher or other data",
                hint="repeat that run's command to finish it, or add --overwrite to throw it away",
            )
        shutil.rmtree(place)
    write_atomically(note, json.dumps(about, indent=1).encode())
    return place


def _lines(
    rows: Every, fields: Mapping[int, Mapping[str, Any]], place: Path, *, split: bool
) -> Iterator[dict[str, Any]]:
    for i, sample in enumerate(rows):
        own = rows.split_of(i)
        values = {k: v for k, v in sample.values.items() if v is not None}
        values |= {k: _file(sample, values[k], f"{i}-{k}", own if split else "", place) for k in MEDIA if k in values}
        yield {**values, **fields[i], **({"split": own} if split else {})}


def _file(sample: Sample, value: Any, name: str, folder: str, place: Path) -> str:
    """Bring a row's file into `place`; its new name."""
    if isinstance(value, dict) and value.get("bytes") is not None:
        own = Path(_MEDIA_FOLDER, name + Path(value.get("path") or "").suffix)
        (place / own).parent.mkdir(parents=True, exist_ok=True)
        (place / own).write_bytes(value["bytes"])
        return str(own)
    text = value.get("path") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f"{sample.where} holds no file but values", hint="save it with encoded pictures and sounds")
    path = sample.root / text
    if not path.is_file():
        raise InputError(f"{sample.where} names {text}, which is missing", hint=f"paths begin at {sample.root}")
    inside = path.resolve().is_relative_to(sample.root.resolve())
    own = Path(folder, path.resolve().relative_to(sample.root.resolve())) if inside else Path(_MEDIA_FOLDER, name)
    own = own if inside else own.with_suffix(path.suffix)
    _link(path.resolve(), place / own)
    return str(own)


def _link(path: Path, target: Path) -> None:
    if target.exists():
        return  # another row has the same file
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)
