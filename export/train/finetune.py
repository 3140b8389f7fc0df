"""Fine-tuning: a checkpoint and a data set → a checkpoint that export takes, and what the change was worth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import set_seed

from edgemm.bundle.files import write_atomically
from edgemm.bundle.writing import check_target, writing
from edgemm.errors import InputError, UsageError
from edgemm.export.checkpoint import Checkpoint, find_checkpoint
from edgemm.export.locate import located
from edgemm.export.train import freezing
from edgemm.export.train.data import Samples, Splits, load
from edgemm.export.train.loop import Loop, Progress, prepared
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.class_report import ClassReport

_MARK = {"marker": "config.json", "what": "checkpoint"}
_SHOWN = 24  # examples in the report

Change = Callable[[Objective, Splits, Path], tuple[Objective, Splits]]
"""The task's own objective, the rows, and where the run is kept → what is trained instead, and on what."""


@dataclass(frozen=True)
class TrainReport:
    """What a run came to. `history` has what was logged at each step, `examples` (what was shown, expected, said).

    `trained` and `parameters` are counts of weights; `labels` is how well each label was found.
    """

    checkpoint: Path
    task: str
    metrics_before: Mapping[str, float]
    metrics_after: Mapping[str, float]
    seconds: float
    steps: int
    examples_per_s: float
    trained: int
    parameters: int
    rows: Mapping[str, int]
    history: tuple[Mapping[str, float], ...] = ()
    examples: tuple[tuple[str, str, str], ...] = ()
    labels: ClassReport | None = None
    metrics_teacher: Mapping[str, float] | None = None


def finetune(
    checkpoint: Path | str,
    data: Path,
    target: Path,
    *,
    task: str | None = None,
    options: TrainOptions | None = None,
    validation: Path | None = None,
    test: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _what, _share: None,
    changed: Change = lambda objective, splits, work: (objective, splits),
    about: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
) -> TrainReport:
    """Train `checkpoint` (a directory, a hub id or an adapter) on `data`; write it to `target` with its report.

    `changed` may put another objective and other rows in the place of the task's own; `about` says what its choices
    were, as JSON has it, and `fields` what rows must have one of, where that is not what the task learns from. A run
    that was killed goes on from its last checkpoint, which stands beside `target` (`<target>.training`) until the end,
    if it is started again with the same choices.

    Raises CheckpointError for a checkpoint that cannot be trained, UsageError for choices that do not fit it or a run
    of other choices that is unfinished, InputError that names the row for a useless one, StorageError for a full disk.
    """
    options = options or TrainOptions()
    target = target.absolute()
    _check_launch()
    # Under `accelerate launch` every process comes here; the first one writes.
    together = PartialState(cpu=not torch.cuda.is_available())
    check_target(target, overwrite=overwrite, **_MARK)
    start = time.perf_counter()
    with located(checkpoint) as path:
        source = part_for(find_checkpoint(path), task)
        kind = registry.find(source, task)
        progress("reading the data", 0.0)
        events = registry.events_for(source.model_type, task)
        splits = load(data, validation=validation, test=test, seed=options.seed, events=events)
        _check_fields(fields or kind.fields, splits)
        set_seed(options.seed)
        objective = kind.load(source, splits, options)
        with together.main_process_first():
            work = _working_directory(target, source, splits, options, about or {}, overwrite=overwrite)
        objective, splits = changed(objective, splits, work)
        objective.prepare(Path(options.tower_cache) if options.tower_cache else work / "cache")
        loop = prepared(objective, freezing.apply(objective.model, options), splits, options, work, progress)
        before = _before(work, loop, splits, progress)
        _check_metric(options.metric, before)
        loop.go()
        progress("judging", 1.0)
        after, pairs = loop.judge(splits.test)
        teacher = None if objective.teacher is None else loop.judge(splits.test, objective.teacher)[0]
        seconds = time.perf_counter() - start
        asked = task or registry.tasks_of(source.model_type)[0]
        report = _report(target, asked, loop, splits, (before, after), pairs, seconds, teacher)
        if together.is_main_process:
            _write(objective, loop, target, report, overwrite=overwrite)
            shutil.rmtree(work, ignore_errors=True)
        together.wait_for_everyone()
    return report


def part_for(source: Checkpoint, task: str | None) -> Checkpoint:
    """The model of a composite checkpoint that the task is for. Raises UsageError where there is not one."""
    if len(source.parts) == 1:
        return source
    parts = {name: find_checkpoint(path) for name, path in source.parts.items()}
    able = {name: part for name, part in parts.items() if registry.tasks_of(part.model_type)}
    fits = [part for part in able.values() if task is None or task in registry.tasks_of(part.model_type)]
    if len(fits) != 1:
        tasks = {name: ", ".join(registry.tasks_of(part.model_type)) for name, part in able.items()}
        known = "; ".join(f"{name}: {what}" for name, what in tasks.items())
        raise UsageError(f"{source.path} holds {len(parts)} models", hint=f"name the task (--task): {known}")
    return fits[0]


def _check_launch() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UsageError(
            "weights that are spread over processes (FSDP) cannot be judged and kept yet",
            hint="launch with samples/launch/hosts.yaml: every process holds the model",
        )


def _check_fields(fields: Sequence[str], splits: Splits) -> None:
    has = splits.train.fields
    if fields and not set(fields) & {*has, *(("image", "audio", "video") if "file_name" in has else ())}:
        raise InputError(
            f"{splits.train.name} has none of {', '.join(fields)}, which this task learns from",
            hint=f"it has {', '.join(has)}",
        )


def _working_directory(
    target: Path,
    source: Checkpoint,
    splits: Splits,
    options: TrainOptions,
    more: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Path:
    """Where the run keeps what it goes on from, its choices noted in it."""
    work = target.with_name(f"{target.name}.training")
    about = {
        **more,
        "options": options.digest,
        "checkpoint": source.model_type,
        "weights": [[f.name, f.stat().st_size] for f in source.weight_files],
        "rows": {name: rows_digest(getattr(splits, name)) for name in ("train", "validation", "test")},
    }
    note = work / "run.json"
    if note.is_file() and json.loads(note.read_text()) != about:
        if any(work.glob("checkpoint-*")) and not overwrite:
            raise UsageError(
                f"{work} holds an unfinished run with other choices or other data",
                hint="repeat that run's command to finish it, or add --overwrite to throw it away",
            )
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(about, indent=1).encode())
    return work


def _check_metric(metric: str, before: Mapping[str, float]) -> None:
    if metric and metric not in (*before, "loss"):
        raise UsageError(f"there is no metric {metric!r}", hint=f"this task has {', '.join(before)}, loss")


def rows_digest(rows: Samples) -> str:
    """SHA-256 of all that rows say; of media that are inside, of their bytes."""
    sha = hashlib.sha256()
    for name in rows.fields:
        sha.update(json.dumps([name, rows.column(name)], sort_keys=True, default=_plain).encode())
    return sha.hexdigest()


def _plain(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _before(work: Path, loop: Loop, splits: Splits, progress: Progress) -> dict[str, float]:
    """The metrics of the untrained model on the test rows, measured once a run."""
    note = work / "before.json"
    if note.is_file():
        known: dict[str, float] = json.loads(note.read_text())
        return known
    progress("judging the checkpoint as it is", 0.0)
    found, _ = loop.judge(splits.test)
    if loop.is_world_process_zero():
        write_atomically(note, json.dumps(found).encode())
    return found


def _report(
    target: Path,
    task: str,
    loop: Loop,
    splits: Splits,
    metrics: tuple[dict[str, float], dict[str, float]],
    pairs: list[tuple[Any, Any]],
    seconds: float,
    teacher: Mapping[str, float] | None,
) -> TrainReport:
    history = loop.history
    speed = next((h["train_samples_per_second"] for h in reversed(history) if "train_samples_per_second" in h), 0.0)
    show = loop.objective.show
    shown = [
        (what_is_shown(splits.test[i].values), show(expected), show(said))
        for i, (expected, said) in enumerate(pairs[:_SHOWN])
    ]
    trained, parameters = freezing.trainable(loop.trained)
    return TrainReport(
        checkpoint=target,
        task=task,
        metrics_before=metrics[0],
        metrics_after=metrics[1],
        seconds=seconds,
        steps=loop.state.global_step,
        examples_per_s=speed,
        trained=trained,
        parameters=parameters,
        rows={name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        history=tuple(history),
        examples=tuple(shown),
        metrics_teacher=teacher,
        labels=loop.objective.report([e for e, _ in pairs], [s for _, s in pairs]),
    )


def what_is_shown(values: Mapping[str, Any]) -> str:
    """A row's medium and question, in short."""
    names = [str(values[n]) for n in ("image", "audio", "video", "file_name") if isinstance(values.get(n), str)]
    asked = values.get("question") or values.get("user")
    return ", ".join([*names, *([str(asked)] if asked else [])])


def _write(objective: Objective, loop: Loop, target: Path, report: TrainReport, *, overwrite: bool) -> None:
    from edgemm.export.train.report import write_report

    model = freezing.merged(loop.trained)
    with writing(target, overwrite=overwrite, **_MARK) as partial:
        objective.save(model, partial)
        write_report(partial, report)
