"""Distilling: a checkpoint teaches a smaller copy of itself, or another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgemm.bundle.manifest import Precision
from edgemm.errors import UsageError
from edgemm.export.checkpoint import Checkpoint, find_checkpoint
from edgemm.export.locate import is_hub_id, located
from edgemm.export.train.data import Splits
from edgemm.export.train.finetune import TrainReport, finetune, part_for
from edgemm.export.train.labelling import Progress, told_rows
from edgemm.export.train.objectives import registry
from edgemm.export.train.objectives.base import Objective
from edgemm.export.train.objectives.distilled import Distilled, Echo
from edgemm.export.train.objectives.features import KINDS, Kind, features_between
from edgemm.export.train.objectives.quantized import QuantizationAware
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.students import SHAPES, student_of

_SAID = "said"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Teaching:
    """How a student is made and taught. `hard` is the share of the labels' own loss beside the teacher's.

    `student` is `half-depth` where nothing is said. With `qat` (`int8` or `int4`) the student computes with the weights
    that export will store, and is of the teacher's own shape where nothing else is said.
    With `sequence` the labels are what the teacher says. `features` is the weight of the distance between hidden states
    (0: they are left alone), `feature_loss` how it is measured, `feature_layers` between which layers (see
    `objectives.features`).
    """

    student: str = ""
    temperature: float = 2.0
    hard: float = 0.5
    sequence: bool = False
    features: float = 0.0
    feature_loss: Kind = "mse"
    feature_layers: tuple[str, ...] = ()
    qat: Precision | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that mean nothing."""
        if self.temperature <= 0 or not 0 <= self.hard <= 1:
            raise UsageError("--temperature is above 0, and --hard a share from 0 to 1")
        if self.features < 0 or self.feature_loss not in KINDS:
            raise UsageError("--features is a weight of 0 or more", hint=f"--feature-loss {' or '.join(KINDS)}")
        if self.qat not in (None, "int8", "int4"):
            raise UsageError(f"--qat {self.qat} is not trained for", hint="int8 or int4")
        if self.feature_layers and not self.features:
            raise UsageError("--feature-layer without a weight changes nothing", hint="add --features 1.0")

    @property
    def shape(self) -> str:
        """What is said of the student, or meant where nothing is."""
        return self.student or ("same" if self.qat else "half-depth")

    @property
    def is_checkpoint(self) -> bool:
        """Whether the student is a checkpoint of its own, not a shape of the teacher's."""
        place = Path(self.shape)
        return self.shape not in SHAPES and (place.is_dir() or (is_hub_id(self.shape) and place.suffix != ".json"))


def distill(
    teacher: Path | str,
    data: Path,
    target: Path,
    *,
    teaching: Teaching,
    options: TrainOptions | None = None,
    task: str | None = None,
    progress: Progress = lambda _what, _share: None,
    **more: Any,
) -> TrainReport:
    """Make a student of `teacher` (see `students.student_of`) or take a checkpoint, teach it on `data`, write `target`.

    Takes and raises what `finetune` does. Before and after are the student's: its first figure is that of the teacher's
    layers that stayed, or of its checkpoint. A checkpoint that reads other tokens or other inputs than the teacher
    learns from the teacher's words alone, and UsageError is raised where `teaching` has no `sequence` for it.
    """
    options = options or TrainOptions()
    about: dict[str, Any] = {"teaching": asdict(teaching)}
    # The teacher's files are read as long as it speaks.
    with located(teacher) if teaching.is_checkpoint else nullcontext(Path(teacher)) as path:
        if teaching.is_checkpoint:
            source = part_for(find_checkpoint(path), task)
            about["teacher"] = [source.model_type, *([f.name, f.stat().st_size] for f in source.weight_files)]

        def changed(objective: Objective, splits: Splits, work: Path) -> tuple[Objective, Splits]:
            if teaching.is_checkpoint:
                theirs = registry.find(source, task).as_it_is(source, options)
                same = speak_alike(objective, theirs)
                if not (same or teaching.sequence):
                    raise UsageError(
                        f"{teaching.student} has other inputs or tokens than its teacher: logits cannot be compared",
                        hint="add --sequence, to learn from the teacher's words",
                    )
            else:
                theirs, same = objective, True
            large = theirs.model
            if teaching.sequence:
                told = told_rows(theirs, splits.train, work / _SAID, progress=progress)
                splits = replace(splits, train=told)
            if not teaching.is_checkpoint:
                objective.model = student_of(large, teaching.shape)
            made = _taught(objective, large, teaching, splits) if same else _echo(objective, theirs, teaching)
            return QuantizationAware(made, teaching.qat) if teaching.qat else made, splits

        where = teaching.student if teaching.is_checkpoint else teacher
        return finetune(
            where, data, target, task=task, options=options, progress=progress, changed=changed, about=about, **more
        )


def speak_alike(one: Objective, other: Objective) -> bool:
    """Whether two objectives give their models the same inputs and mean the same by the same logits."""
    return _speech_of(one.checkpoint, one.model) == _speech_of(other.checkpoint, other.model)


def _speech_of(checkpoint: Checkpoint, model: Any) -> tuple[Any, ...]:
    tokenizer = checkpoint.path / _TOKENIZER
    labels: Mapping[Any, Any] = getattr(model.config, "id2label", {})
    words = tokenizer.read_bytes() if tokenizer.is_file() else b""
    return checkpoint.model_type, words, getattr(model.config, "vocab_size", None), sorted(map(str, labels.items()))


def _taught(objective: Objective, teacher: Any, teaching: Teaching, splits: Splits) -> Objective:
    if teaching.qat and not objective.logits:
        objective.teacher = teacher.eval().requires_grad_(False)
        return objective  # detectors: the labels alone
    features = None
    if teaching.features and objective.logits:
        part = objective.batch([splits.train[0]], training=False)["parts"][0]
        features = features_between(
            objective.model, teacher, part, chosen=teaching.feature_layers, kind=teaching.feature_loss
        )
    return Distilled(
        objective,
        teacher,
        temperature=teaching.temperature,
        hard=teaching.hard,
        features=features,
        feature_weight=teaching.features,
    )


def _echo(objective: Objective, theirs: Objective, teaching: Teaching) -> Objective:
    if teaching.features:
        raise UsageError("hidden states of different families are not compared", hint="leave --features out")
    return Echo(objective, theirs)
