"""The whole task, bundle against original, on the same examples: before a bundle gets its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import TaskCheck
from edgemm.bundle.opening import open_bundle
from edgemm.errors import CheckFailed
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import Example, ModelPlan, Reference
from edgemm.export.precision.calibration import RATE_HZ
from edgemm.export.verify import compare
from edgemm.model import Model
from edgemm.runtimes.lowering.pairing import SPARE, paired
from edgemm.tasks.metrics import top1, wer

_MOST = {"transcribe": 9, "classify": 24, "answer": 2, "caption": 2, "describe": 2}
_PROBABILITY_TOLERANCE = 1e-4
_ENOUGH_S = 10.0
_VALUES_TOLERANCE, _VALUES_COSINE = 1e-3, 0.9999
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
            asked = {} if plan.reference is None else {plan.tasks[0]: plan.reference}
            for task, reference in (asked | dict(plan.references)).items():
                outcomes.append(_outcome(model, name, plan, (task, reference), examples))
    for outcome in outcomes:
        if outcome.tokens_equal < 1.0:
            raise CheckFailed(
                f"{outcome.check.model} does not {outcome.task} as the original does: "
                f"{outcome.tokens_equal:.0%} of {outcome.check.n} examples are equal",
                hint="this family needs mending before it can be exported",
            )
    return outcomes


def _outcome(
    model: Model,
    name: str,
    plan: ModelPlan,
    asked: tuple[str, Callable[[Example], Reference]],
    examples: Sequence[Example],
) -> TaskOutcome:
    task, reference = asked
    usable = [e for e in examples if getattr(e, plan.takes) is not None]
    # Evenly over the data: neighbours in it are alike.
    most = _MOST.get(task, 6)
    picks = tuple(usable[:: max(1, len(usable) // most)][:most])
    original, found = _ask_both(model, task, reference, picks)
    picks = picks[: len(original)]
    check = _judge(model, name, task, original, found)
    return TaskOutcome(task, picks, original, check, _equal(original, found))


def _ask_both(
    model: Model, task: str, reference: Callable[[Example], Reference], examples: Sequence[Example]
) -> tuple[tuple[Reference, ...], tuple[Reference, ...]]:
    """What the original and the bundle say, example by example as long as the next ends within `_ENOUGH_S`."""
    start = time.perf_counter()
    original, found = [], []
    for example in examples:
        original.append(reference(example))
        found.append(_ASK[task](model, example))
        passed = time.perf_counter() - start
        if passed + passed / len(found) > _ENOUGH_S:
            break
    return tuple(original), tuple(found)


def _transcribe(model: Model, example: Example) -> Reference:
    return Reference(tokens=model.transcribe(example.audio).tokens)


def _classify(model: Model, example: Example) -> Reference:
    if example.image is None:
        heard = model.task("classify").probabilities(audio=example.audio, sample_rate_hz=RATE_HZ)
        return Reference(probabilities=heard)
    return Reference(probabilities=model.task("classify").probabilities(example.image))


def _answer(model: Model, example: Example) -> Reference:
    if example.image is None:
        said = model.answer([], example.question, audio=example.audio, sample_rate_hz=RATE_HZ, max_new_tokens=24)
        return Reference(tokens=said.tokens)
    return Reference(tokens=model.answer(example.image, example.question, max_new_tokens=24).tokens)


def _caption(model: Model, example: Example) -> Reference:
    return Reference(tokens=model.caption(example.image, max_new_tokens=24).tokens)


def _describe(model: Model, example: Example) -> Reference:
    frames = clip_of(example)
    times_s = [0.4 * i for i in range(len(frames))]
    return Reference(tokens=model.describe(frames, times_s, max_new_tokens=24).tokens)


def clip_of(example: Example) -> list[NDArray[np.uint8]]:
    """Three frames of one picture: as it is, upside down and mirrored."""
    assert example.image is not None
    return [example.image, example.image[::-1], example.image[:, ::-1]]


def _detect(model: Model, example: Example) -> Reference:
    return Reference(rows=model.task("detect").rows(example.image))


def _embed(model: Model, example: Example) -> Reference:
    """Of a model with two towers, both: what was seen or heard, and the question."""
    encoder = model.task("embed")
    if not encoder.sees_or_hears:
        return Reference(values=encoder.texts([example.question])[0])
    seen = encoder.image(example.image) if example.image is not None else encoder.audio(example.audio, RATE_HZ)
    read = [encoder.texts([example.question])[0]] if encoder.reads else []
    return Reference(values=np.concatenate([seen, *read]))


# How the bundle is asked what `ModelPlan.reference` asks the original.
_ASK: dict[str, Callable[[Model, Example], Reference]] = {
    "transcribe": _transcribe,
    "classify": _classify,
    "answer": _answer,
    "caption": _caption,
    "describe": _describe,
    "detect": _detect,
    "embed": _embed,
}


def ask(model: Model, task: str, example: Example) -> Reference:
    """What the bundle says to `example`."""
    return _ASK[task](model, example)


def _equal(original: Sequence[Reference], found: Sequence[Reference]) -> float:
    equal = [_same(a, b) for a, b in zip(original, found, strict=True)]
    return sum(equal) / len(equal) if equal else 1.0


def _same(a: Reference, b: Reference) -> bool:
    if a.rows is not None and b.rows is not None:
        x, y = paired(a.rows, b.rows)
        return _same(Reference(values=x), Reference(values=y))
    if a.values is not None and b.values is not None:
        worst, cosine = compare({"values": a.values}, {"values": b.values})
        return worst <= _VALUES_TOLERANCE and cosine >= _VALUES_COSINE
    if a.probabilities is not None and b.probabilities is not None:
        return float(np.abs(a.probabilities - b.probabilities).max()) <= _PROBABILITY_TOLERANCE
    return a.tokens == b.tokens


def _judge(model: Model, name: str, task: str, original: Sequence[Reference], found: Sequence[Reference]) -> TaskCheck:
    if original and original[0].values is not None:
        both = [({"v": a.values}, {"v": b.values}) for a, b in zip(original, found, strict=True)]
        value = min(compare(a, b)[1] for a, b in both)  # type: ignore[arg-type]
        return TaskCheck(model=name, task=task, metric="cosine_to_original", before=value, after=value, n=len(found))
    if original and original[0].rows is not None:
        pairs = [paired(a.rows, b.rows, SPARE) for a, b in zip(original, found, strict=True)]  # type: ignore[arg-type]
        values = [[Reference(values=pair[side]) for pair in pairs] for side in (0, 1)]
        return _judge(model, name, task, *values)
    if original and original[0].probabilities is not None:
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
            found = tuple(_ASK[outcome.task](model, example) for example in outcome.examples)
            check = _judge(model, outcome.check.model, outcome.task, outcome.original, found)
            outcomes.append(
                replace(
                    outcome,
                    check=check.model_copy(update={"before": outcome.check.before}),
                    tokens_equal=_equal(outcome.original, found),
                )
            )
    return outcomes
