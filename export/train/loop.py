"""The loop of one run: transformers' Trainer, steered by the task's metric, and able to go on after a kill.

What stands under the working directory: `checkpoint-N` (weights, optimizer, schedule, random states: complete where
`trainer_state.json` is readable), and `best`, the weights of the best evaluation.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_utils import EvalLoopOutput, SchedulerType

from edgemm.errors import InputError, UsageError
from edgemm.export.train.data import Sample, Samples, Splits
from edgemm.export.train.objectives.base import Lesson, Objective
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.scoring import METRICS, Metric

Progress = Callable[[str, float], None]
STATE, WEIGHTS = "trainer_state.json", "weights.pt"
BEST = "best"
_KEPT = 2  # checkpoints to go on from


def prepared(
    objective: Objective,
    model: Any,
    splits: Splits,
    options: TrainOptions,
    work: Path,
    progress: Progress = lambda _what, _share: None,
) -> Loop:
    """A loop that trains `model` on the first split, steered by the second."""
    metric = options.metric or objective.metric
    greater = metric != "loss" and METRICS.get(metric, Metric()).worse < 0
    lesson = Lesson(objective, model)
    loop = Loop(
        objective,
        KeepBest(work / BEST, metric, greater=greater, patience=options.patience),
        model=lesson,
        args=arguments(options, work),
        train_dataset=objective.units(splits.train),
        eval_dataset=splits.validation[: options.evaluate_limit],
        data_collator=lambda units: objective.batch(_rows(units), training=lesson.training),
        optimizer_cls_and_kwargs=optimizer(options),
        callbacks=[Tell(progress)],
    )
    loop.remove_callback(PrinterCallback)
    return loop


def _rows(units: Sequence[Any]) -> list[Sample]:
    return [row for unit in units for row in ([unit] if isinstance(unit, Sample) else unit)]


def arguments(options: TrainOptions, work: Path) -> TrainingArguments:
    """`options` as transformers takes them. Raises UsageError for a schedule that it does not know."""
    schedules = [s.value for s in SchedulerType]
    if options.schedule not in schedules:
        raise UsageError(f"no schedule {options.schedule!r}", hint=f"one of {', '.join(schedules)}")
    by_steps, saved_by_steps = options.evaluate_every > 0, options.save_every > 0
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        max_grad_norm=options.clip,
        bf16=options.precision == "bf16",
        fp16=options.precision == "fp16",
        eval_strategy="steps" if by_steps else "epoch",
        eval_steps=options.evaluate_every or None,
        save_strategy="steps" if saved_by_steps else "epoch",
        save_steps=options.save_every or 500,
        save_total_limit=_KEPT,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=[],
        dataloader_num_workers=options.workers,
        seed=options.seed,
        data_seed=options.seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def optimizer(options: TrainOptions) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """One of torch's by its name. Raises UsageError with the names for another."""
    found = getattr(torch.optim, options.optimizer, None)
    if not isinstance(found, type) or not issubclass(found, torch.optim.Optimizer) or found is torch.optim.LBFGS:
        names = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in ("Optimizer", "LBFGS")]
        raise UsageError(f"torch has no optimizer {options.optimizer!r}", hint=f"one of {', '.join(sorted(names))}")
    try:
        found([torch.nn.Parameter(torch.zeros(1))], lr=options.learning_rate, **options.optimizer_options)
    except TypeError as error:
        raise UsageError(f"{options.optimizer}: {error}", hint="look at torch's documentation of it") from error
    return found, {"lr": options.learning_rate, **options.optimizer_options}


def last_complete(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones are deleted."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / STATE).read_text())
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        else:
            return path
    return None


class Loop(Trainer):
    """Trainer with the objective's loss and, at every evaluation, its metrics."""

    def __init__(self, objective: Objective, best: KeepBest, **more: Any) -> None:
        super().__init__(**more)
        self.objective, self._best, self.can_return_loss = objective, best, True
        self.add_callback(best)
        # Ours is a mean over the batch: accumulated ones are averaged.
        self.model_accepts_loss_kwargs = False

    def go(self) -> None:
        """Train to the end, from the last complete checkpoint if there is one; the model then has the best weights."""
        last = last_complete(Path(self.args.output_dir))
        self.train(resume_from_checkpoint=str(last) if last else None)
        self.accelerator.wait_for_everyone()
        self._best.restore(self)

    @property
    def trained(self) -> Any:
        """The model itself, with its adapters if it has any."""
        return self.accelerator.unwrap_model(self.model).model

    @property
    def history(self) -> list[dict[str, float]]:
        """What was logged at each step: `step`, and losses, rates and metrics."""
        return list(self.state.log_history)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Weights by the model's own names: transformers writes published ones, and reads only some of them back."""
        place = Path(output_dir or self.args.output_dir)
        place.mkdir(parents=True, exist_ok=True)
        torch.save(state_dict or self.accelerator.unwrap_model(self.model).state_dict(), place / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights = torch.load(Path(resume_from_checkpoint) / WEIGHTS, map_location="cpu", weights_only=True)
        (model or self.model).load_state_dict(weights)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        out = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        found, _ = self.judge(dataloader.dataset)
        out.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return out

    def judge(self, rows: Samples, model: Any = None) -> tuple[dict[str, float], list[tuple[Any, Any]]]:
        """The metrics of what the model says to `rows`, and (expected, said) of each. Every process does its share.

        `model` is another one than that which is trained.
        """
        objective, size = self.objective, self.args.per_device_eval_batch_size
        model = self.trained if model is None else model
        pairs: list[tuple[Any, Any]] = []
        with _judging(model), self.accelerator.split_between_processes(list(range(len(rows)))) as own:
            for start in range(0, len(own), size):
                samples = [rows[i] for i in own[start : start + size]]
                said = objective.say(model, samples)
                pairs += zip((objective.expected(s) for s in samples), said, strict=True)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            pairs = gather_object(pairs)
        return objective.judge([e for e, _ in pairs], [s for _, s in pairs]), pairs


@contextmanager
def _judging(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


class KeepBest(TrainerCallback, ExportableState):
    """Keeps the weights of the best evaluation, and stops where `patience` evaluations were no better."""

    def __init__(self, place: Path, metric: str, *, greater: bool, patience: int) -> None:
        self.place, self.metric, self.greater, self.patience = place, metric, greater, patience
        self.best = -math.inf if greater else math.inf
        self.waited = 0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of it."""
        args = {"place": str(self.place), "metric": self.metric, "greater": self.greater, "patience": self.patience}
        return {"args": args, "attributes": {"best": self.best, "waited": self.waited}}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **more: Any) -> None:
        value = metrics.get(f"eval_{self.metric}")
        if value is None:
            has = ", ".join(sorted(name.removeprefix("eval_") for name in metrics))
            raise InputError(f"the validation rows give no {self.metric}, by which the best weights are kept: {has}")
        if (value > self.best) if self.greater else (value < self.best):
            self.best, self.waited = value, 0
            if state.is_world_process_zero:
                _write_weights(more["model"], Path(self.place))
            return
        self.waited += 1
        if self.patience and self.waited >= self.patience:
            control.should_training_stop = True

    def restore(self, loop: Trainer) -> None:
        """Put the best weights into the model."""
        path = Path(self.place) / WEIGHTS
        if path.is_file():
            loop.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)


def _write_weights(model: Any, place: Path) -> None:
    """What is trained, written beside its place and renamed."""
    place.mkdir(parents=True, exist_ok=True)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    buffers = {n for n, _ in model.named_buffers()}
    values = {n: v for n, v in model.state_dict().items() if n in trained or n in buffers}
    torch.save(values, place / "weights.partial")
    (place / "weights.partial").replace(place / WEIGHTS)


class Tell(TrainerCallback):
    """Says how far the run is, with the last loss."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **more: Any) -> None:
        loss = logs.get("loss")
        if loss is not None and state.max_steps:
            what = f"step {state.global_step} of {state.max_steps}, loss {float(loss):.3f}"
            self._progress(what, state.global_step / state.max_steps)
