"""What a row of a data set asks of a model, what was expected, and what the model says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.errors import EdgemmError, InputError
from edgemm.measure.predict import clip_of, frames_of, to_ask
from edgemm.processing.audio import load_audio
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video
from edgemm.processing.video import sample_fps
from edgemm.tasks.boxes import Box, as_text
from edgemm.tasks.liking import as_text as liking_text
from edgemm.tasks.rows import Row

if TYPE_CHECKING:
    from edgemm.model import Model

_ANY_SCORE = 0.001  # mAP weighs every object by its rank, the unlikely ones too
_CLIP_FPS = 8.0  # of a clip with a label; models take fewer frames


def task_of(row: Row) -> str:
    """The task that a row is an example of. Raises InputError for one that no task fits."""
    if row.objects is not None:
        return "detect"
    if row.liking is not None:
        return "recommend"
    if row.question is not None or row.answers:
        return _answer_of(row)
    if row.label is not None:
        return "classify"
    if row.texts:
        return _writing_of(row)
    raise InputError(
        f"{row.where} has neither a text nor a label nor objects nor a question with its answer", hint="add one of them"
    )


def _answer_of(row: Row) -> str:
    spoken = row.sound is not None or row.kind == "audio"
    if not row.answers or (row.question is None and not spoken):
        has, lacks = ("an answer", "question") if row.question is None else ("a question", "answer")
        raise InputError(f"{row.where} has {has} and no {lacks}", hint=f'add "{lacks}"')
    return "answer"


def _writing_of(row: Row) -> str:
    if row.kind == "image":
        return "caption"
    if row.kind == "video":
        return "describe"
    if len(row.texts) > 1:
        raise InputError(f"{row.where} has {len(row.texts)} texts, one transcript was expected", hint="keep one")
    return "transcribe"


def expected_of(model: Model, row: Row, task: str) -> str | tuple[str, ...]:
    """What is right, as `scoring.measured` takes it. Raises InputError for a label that the model lacks."""
    if task in ("caption", "describe"):
        return row.texts
    if task == "answer":
        return row.answers
    if task == "transcribe":
        return row.texts[0]
    if task == "detect":
        boxes = [Box(label_of(name, model, where=row.where, task="detect"), box) for name, box in row.objects or ()]
        return as_text(boxes)
    if row.liking is not None:
        return liking_text(row.liking)
    return label_of(row.label or "", model, where=row.where)


def label_of(text: str, model: Model, *, where: str = "", task: str = "classify") -> str:
    """The label of `model` for a task that `text` means: case, `_` and further names after a comma don't matter.

    Raises InputError with the nearest labels; it begins with `where`.
    """
    names: Sequence[str] = model.task(task).names
    for name in names:
        if _plain(text) in {_plain(name), *(_plain(part) for part in name.split(","))}:
            return name
    import difflib

    near = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    raise InputError(
        f"{where}{': ' if where else ''}{text!r} is none of the {len(names)} labels of {model.name}",
        hint=f"the nearest are {', '.join(near)}" if near else "use the labels of the checkpoint",
    )


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def said_to(model: Model, row: Row, task: str) -> str:
    """What the model says to a row, as `scoring.measured` takes it.

    Raises TaskUnavailable where it lacks the task; other errors begin with the row's place in the data set.
    """
    model.bundle.model_for(task)
    try:
        return _SAY[task](model, row)
    except EdgemmError as error:
        error.message = f"{row.where}: {error.message}"
        raise


def _heard(path: Path) -> dict[str, Any]:
    samples, rate_hz = load_audio(path)
    return {"audio": samples, "sample_rate_hz": rate_hz}


def _classify(model: Model, row: Row) -> str:
    if row.kind == "audio":
        found = model.classify(**_heard(row.path), top=1)
    elif row.kind == "video":
        found = model.classify(frames=[f.image for f in sample_fps(iter_video(row.path), _CLIP_FPS)], top=1)
    else:
        found = model.classify(row.path, top=1)
    return found.labels[0].label


def _recommend(model: Model, row: Row) -> str:
    assert row.liking is not None
    return f"{model.recommend(row.liking.user, [row.liking.item]).items[0].score:.6f}"


def _detect(model: Model, row: Row) -> str:
    found = model.detect(row.path, score_min=_ANY_SCORE).objects
    return as_text([Box(x.label, x.box_px, x.score) for x in found])


def _transcribe(model: Model, row: Row) -> str:
    samples, rate_hz = load_audio(row.path)
    return model.transcribe(samples, sample_rate_hz=rate_hz).text


def _caption(model: Model, row: Row) -> str:
    return model.caption(to_rgb(row.path)).text


def _describe(model: Model, row: Row) -> str:
    frames = clip_of(row.path)
    return model.describe([image for image, _ in frames], [t_s for _, t_s in frames]).text


def _answer(model: Model, row: Row) -> str:
    seen = [] if row.kind == "audio" else to_ask(frames_of(row.path, row.kind))
    sound = row.path if row.kind == "audio" else row.sound
    if sound is None:
        return model.answer(seen, row.question or "").text
    # For a model that reads alone the sound is the question, whatever else says what is asked in it.
    question = (row.question or "") if model.hears("answer") else ""
    return model.answer(seen, question, **_heard(sound)).text


_SAY: dict[str, Callable[[Model, Row], str]] = {
    "classify": _classify,
    "recommend": _recommend,
    "detect": _detect,
    "transcribe": _transcribe,
    "caption": _caption,
    "describe": _describe,
    "answer": _answer,
}
