"""Which objective a checkpoint is trained by: by its `model_type` and the task that is asked for."""

from __future__ import annotations

import importlib

from edgemm.errors import UsageError
from edgemm.export import families
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.train.objectives.base import Objective

_CHATS = (
    "gemma3", "idefics3", "llava", "llava_onevision", "paligemma", "qwen2_5_vl", "qwen2_audio", "qwen2_vl", "qwen3_vl",
    "smolvlm",
)  # fmt: skip
_HERE = "edgemm.export.train.objectives."
OBJECTIVES: dict[str, dict[str, str]] = {
    "transcribe": dict.fromkeys(("moonshine", "whisper"), "speech:SpeechToText")
    | dict.fromkeys(("hubert", "wav2vec2"), "speech:SpeechToLetters"),
    "answer": dict.fromkeys(_CHATS, "chat:Chat") | {"florence2": "captions:Florence", "blip": "captions:Blip"},
    "caption": dict.fromkeys(_CHATS, "chat:Chat")
    | {"florence2": "captions:Florence", "blip": "captions:Blip", "vision-encoder-decoder": "captions:PictureToText"},
    "classify": dict.fromkeys(
        (
            "audio-spectrogram-transformer",
            "convnext",
            "dinov2",
            "efficientnet",
            "efficientnet-lite0",
            "videomae",
            "vit",
        ),
        "labels:Labels",
    ),
    "detect": dict.fromkeys(("d_fine", "detr", "rt_detr", "rt_detr_v2", "yolos"), "boxes:Boxes"),
    "embed": dict.fromkeys(("clap", "clip", "siglip", "siglip2"), "pairs:DualEncoder") | {"bert": "pairs:TextPairs"},
}
"""Task → model_type → where its objective stands."""

FRAMBICUS = "frambicus"
"""The project's own model, trained for all its tasks at once by what the rows have."""

SAME = {"describe": "answer", "recommend": "embed"}
EVENTS = {"transcribe": "transcript", "answer": "answer", "caption": "caption"}
"""Task → the events of a recording that teach it."""


def tasks_of(model_type: str) -> tuple[str, ...]:
    """What a family can be trained for."""
    if model_type == FRAMBICUS:
        return ("answer", "caption", "describe", "detect")
    return tuple(task for task, known in OBJECTIVES.items() if model_type in known)


def events_for(model_type: str, task: str | None) -> tuple[str, ...]:
    """What of a recording teaches a family: for a task, or for all that it can be trained for."""
    wanted = (SAME.get(task, task),) if task else tasks_of(model_type)
    return tuple(EVENTS[name] for name in wanted if name in EVENTS)


def find(checkpoint: Checkpoint, task: str | None) -> type[Objective]:
    """The objective for a checkpoint, its first where no task is named.

    Raises CheckpointError for a family that is not known, UsageError for a task that it cannot be trained for.
    """
    if checkpoint.model_type == FRAMBICUS:
        own: type[Objective] = importlib.import_module(f"{_HERE}frambicus").Frambicus
        return own
    families.facts(checkpoint.model_type, checkpoint.config)
    able = tasks_of(checkpoint.model_type)
    wanted = SAME.get(task, task) if task else next(iter(able), None)
    if wanted is None or wanted not in able:
        raise UsageError(
            f"a {checkpoint.model_type} cannot be trained" + (f" to {task}" if task else ""),
            hint=f"it can: {', '.join(able)}" if able else "its family has no objective yet",
        )
    module, name = OBJECTIVES[wanted][checkpoint.model_type].split(":")
    found: type[Objective] = getattr(importlib.import_module(_HERE + module), name)
    return found
