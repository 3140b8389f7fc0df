"""The whole task, bundle against original, on the same examples: before a bundle gets its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgemm.bundle.manifest import TaskCheck
from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckFailed
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import Example, ModelPlan, Reference
from edgemm.model import Model
from edgemm.tasks.metrics import top1, wer

_MOST = {"transcribe": 9, "classify": 24, "answer": 2}
_PROBABILITY_TOLERANCE = 1e-4
_SURE = 0.1  # margin between the two best classes: below it, the original itself is guessing


@dataclass(frozen=True)
class TaskOutcome:
    """One task of one model: its examples, what the original said, and the metric so far."""

    task: str
    examples: tuple[Example, ...]
    original: tuple[Reference, ...]
    check: TaskCheck
    tokens_equal: float


def against_original(
    directory: Path,
    found: dict[str, tuple[Checkpoint, ModelPlan]],
    examples: Sequence[Example],
    step: Callable[[str], None],
) -> list[TaskOutcome]:
    """Run the fp32 bundle in `directory` and the originals on `examples`.

    Raises CheckFailed where they do not say the same.
    """
    outcomes = []
    with Model(open_bundle(directory), runtime="onnxruntime") as model:
        for name, (_, plan) in found.items():
            step(f"comparing {name} with the original")
            if plan.reference is not None:
                outcomes.append(_outcome(model, name, plan, examples))
    for outcome in outcomes:
        if outcome.tokens_equal < 1.0:
            raise CheckFailed(
                f"{outcome.check.model} does not {outcome.task} as the original does: "
                f"{outcome.tokens_equal:.0%} of {outcome.check.n} examples are equal",
                hint="this family needs mending before it can be exported",
            )
    return outcomes


def _outcome(model: Model, name: str, plan: ModelPlan, examples: Sequence[Example]) -> TaskOutcome:
    task = plan.tasks[0]
    assert plan.reference is not None
    usable = [e for e in examples if _fits(task, e)]
    # Evenly over the data: neighbours in it are alike.
    picks = tuple(usable[:: max(1, len(usable) // _MOST[task])][: _MOST[task]])
    original = tuple(map(plan.reference, picks))
    found = _run(model, task, picks)
    check = _judge(model, name, task, original, found)
    return TaskOutcome(task, picks, original, check, _equal(original, found))


def _fits(task: str, example: Example) -> bool:
    return (example.audio if task == "transcribe" else example.image) is not None


def _run(model: Model, task: str, examples: Sequence[Example]) -> tuple[Reference, ...]:
    found = []
    for e in examples:
        if task == "transcribe":
            found.append(Reference(tokens=model.transcribe(e.audio).tokens))
        elif task == "classify":
            found.append(Reference(probabilities=model.task("classify").probabilities(e.image)))
        else:
            said = model.answer(e.image, e.question, max_new_tokens=24)
            found.append(Reference(tokens=said.tokens))
    return tuple(found)


def _equal(original: Sequence[Reference], found: Sequence[Reference]) -> float:
    equal = [
        a.tokens == b.tokens
        if a.probabilities is None or b.probabilities is None
        else float(np.abs(a.probabilities - b.probabilities).max()) <= _PROBABILITY_TOLERANCE
        for a, b in zip(original, found, strict=True)
    ]
    return sum(equal) / len(equal) if equal else 1.0


def _judge(model: Model, name: str, task: str, original: Sequence[Reference], found: Sequence[Reference]) -> TaskCheck:
    if task == "classify":
        sure = [(a, b) for a, b in zip(original, found, strict=True) if _margin(a) > _SURE]
        value = top1([_best(a) for a, _ in sure], [_best(b) for _, b in sure]) if sure else 100.0
        return TaskCheck(model=name, task=task, metric="top1_agreement", before=value, after=value, n=len(sure))
    decode = model.task(task).tokenizer.decode
    texts = [[decode(list(r.tokens)) for r in refs] for refs in (original, found)]
    value = wer(texts[0], texts[1])
    return TaskCheck(model=name, task=task, metric="wer_to_original", before=value, after=value, n=len(found))


def _margin(reference: Reference) -> float:
    assert reference.probabilities is not None
    second, first = np.sort(reference.probabilities)[-2:]
    return float(first - second)


def _best(reference: Reference) -> str:
    assert reference.probabilities is not None
    return str(int(reference.probabilities.argmax()))


def after(directory: Path, before: Sequence[TaskOutcome], step: Callable[[str], None]) -> list[TaskOutcome]:
    """The same outcomes with what the bundle in `directory` makes of the examples."""
    outcomes = []
    with Model(open_bundle(directory), runtime="onnxruntime") as model:
        for outcome in before:
            step(f"measuring {outcome.check.model}")
            found = _run(model, outcome.task, outcome.examples)
            check = _judge(model, outcome.check.model, outcome.task, outcome.original, found)
            outcomes.append(
                replace(
                    outcome,
                    check=check.model_copy(update={"before": outcome.check.before}),
                    tokens_equal=_equal(outcome.original, found),
                )
            )
    return outcomes
