"""One file in, everything that a bundle can say about it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.decoding.options import AS_TRAINED, Generation
from edgemm.errors import EdgemmError, InputError, TaskUnavailable
from edgemm.processing.audio import load_audio
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video, sniff
from edgemm.processing.video import sample_indices
from edgemm.results import Answer, Caption, Description, DetectedObject, Label, Transcript

if TYPE_CHECKING:
    from edgemm.model import Model

# What each kind of file can be asked; the order is the one of the results.
TASKS_OF = {
    "image": ("classify", "detect", "caption", "answer"),
    "audio": ("transcribe",),
    "video": ("classify", "detect", "transcribe", "describe", "answer"),
}
WRITES = ("transcribe", "caption", "describe", "answer")
SAMPLE_EVERY_S = 1.0
ANSWER_FRAMES = 4
CLIP_FRAMES = 8


@dataclass(frozen=True)
class LabelsAt:
    """The labels of one frame, `t_s` seconds into the video; 0 for a picture."""

    t_s: float
    labels: tuple[Label, ...]
    model_ms: float


@dataclass(frozen=True)
class ObjectsAt:
    """The objects of one frame, `t_s` seconds into the video; 0 for a picture."""

    t_s: float
    objects: tuple[DetectedObject, ...]
    model_ms: float


@dataclass(frozen=True)
class Prediction:
    """What was said about one file. What was not asked or does not fit its kind is None."""

    file: str
    kind: str
    labels: tuple[LabelsAt, ...] = ()
    detections: tuple[ObjectsAt, ...] = ()
    transcript: Transcript | None = None
    caption: Caption | None = None
    answer: Answer | None = None
    description: Description | None = None


def predict(
    model: Model,
    path: Path,
    *,
    task: str | None = None,
    question: str | None = None,
    top: int = 5,
    score_min: float = 0.5,
    words: bool = False,
    generation: Generation = AS_TRAINED,
) -> Prediction:
    """Everything that `model` can say about a picture, a sound or a video, or `task` alone.

    `generation` is for captions and answers, and for transcripts where nothing else is written. A video gives the
    transcript of its sound (with `words`, the times of its words too) and the labels and objects of one frame a second.
    Raises SourceError for a file that cannot be read, TaskUnavailable where the model or the kind of file does not fit
    the task, InputError where `generation` or `words` is for a task that is not done.
    """
    kind = sniff(path)
    tasks = _tasks(model, kind, task, question, path)
    writes = [name for name in tasks if name in WRITES]
    if generation.given and not writes:
        raise InputError(f"{', '.join(tasks)} takes no {', '.join(generation.given)}", hint="leave it out")
    if words and "transcribe" not in tasks:
        raise InputError(f"{', '.join(tasks)} takes no words", hint="leave --words out")
    done: dict[str, Any] = {}
    frames = frames_of(path, kind) if {"classify", "detect", "answer", "caption"} & set(tasks) else []
    clip = clip_of(path) if "describe" in tasks else []
    if "classify" in tasks:
        done["labels"] = tuple(_labels(model, image, t_s, top) for image, t_s in frames)
    if "detect" in tasks:
        done["detections"] = tuple(_objects(model, image, t_s, score_min) for image, t_s in frames)
    if "transcribe" in tasks:
        heard = generation if writes == ["transcribe"] else AS_TRAINED
        required = kind == "audio" or task is not None
        done["transcript"] = _transcript(model, path, required=required, words=words, how=heard)
    if "caption" in tasks:
        done["caption"] = model.caption(frames[0][0], generation=generation)
    if "describe" in tasks:
        images, times_s = [image for image, _ in clip], [t_s for _, t_s in clip]
        done["description"] = model.describe(images, times_s, generation=generation)
    if "answer" in tasks:
        done["answer"] = model.answer(to_ask(frames), question or "", generation=generation)
    return Prediction(file=str(path), kind=kind, **done)


def _tasks(model: Model, kind: str, task: str | None, question: str | None, path: Path) -> tuple[str, ...]:
    fitting = TASKS_OF[kind]
    if task == "answer" and not question:
        raise InputError("there is no question to answer", hint="add --question TEXT")
    if task is not None:
        if task not in fitting:
            raise TaskUnavailable(
                f"{path} ({kind}) cannot be given to the task {task!r}",
                hint=f"for this file there are: {', '.join(fitting)}",
            )
        model.bundle.model_for(task)
        return (task,)
    if question:
        model.bundle.model_for("answer")
    wanted = tuple(t for t in fitting if t in model.tasks and (t != "answer" or question))
    if not wanted:
        raise TaskUnavailable(
            f"{model.name} can do nothing with {path} ({kind}): it can {', '.join(model.tasks)}",
            hint="use another bundle or another file",
        )
    return wanted


def frames_of(path: Path, kind: str) -> list[tuple[Any, float]]:
    """A picture, or one frame a second of a video; each uint8 [H, W, 3] RGB with its time in seconds."""
    if kind == "image":
        return [(to_rgb(path), 0.0)]
    frames: list[tuple[Any, float]] = []
    for frame in iter_video(path):
        if not frames or frame.t_s - frames[-1][1] >= SAMPLE_EVERY_S - 1e-3:
            frames.append((frame.image, frame.t_s))
    return frames


def clip_of(path: Path) -> list[tuple[Any, float]]:
    """`CLIP_FRAMES` frames of a video, evenly over it, each with its time in seconds."""
    frames = [(frame.image, frame.t_s) for frame in iter_video(path)]
    return [frames[index] for index in sample_indices(len(frames), CLIP_FRAMES)]


def to_ask(frames: Sequence[tuple[Any, float]]) -> list[Any]:
    """The pictures of `frames` that a question is asked about: a few, evenly over them."""
    return [frames[index][0] for index in sample_indices(len(frames), ANSWER_FRAMES)]


def _labels(model: Model, image: Any, t_s: float, top: int) -> LabelsAt:
    found = model.classify(image, top=top)
    return LabelsAt(round(t_s, 3), found.labels, found.model_ms)


def _objects(model: Model, image: Any, t_s: float, score_min: float) -> ObjectsAt:
    found = model.detect(image, score_min=score_min)
    return ObjectsAt(round(t_s, 3), found.objects, found.model_ms)


def _transcript(model: Model, path: Path, *, required: bool, words: bool, how: Generation) -> Transcript | None:
    """A video without sound has no transcript, which is an error only where it was asked for."""
    try:
        samples, rate_hz = load_audio(path)
    except EdgemmError:
        if required:
            raise
        return None
    return model.transcribe(samples, sample_rate_hz=rate_hz, words=words, generation=how)
