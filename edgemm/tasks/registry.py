"""Which class does a task: by the kind that the manifest's `functions` give for it, else the first one here.

This is the only list of tasks. A class takes the model's `Graphs`.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgemm.errors import BundleError
from edgemm.tasks.graphs import Graphs

TASKS: dict[str, dict[str, str]] = {
    "classify": {"tagger": "classify:Classifier", "zero_shot": "zero_shot:ZeroShot", "grid": "memory:GridClassifier"},
    "embed": {"dual": "dual:DualEncoder", "memory": "memory:MemoryEncoder"},
    "retrieve": {"dual": "dual:DualEncoder", "memory": "memory:MemoryEncoder"},
    "recommend": {"dual": "dual:DualEncoder", "memory": "memory:MemoryEncoder"},
    "detect": {
        "softmax": "detect:SoftmaxDetector",
        "sigmoid": "detect:SigmoidDetector",
        "encoder_decoder": "captioner:RegionDetector",
        "grid": "memory:GridDetector",
    },
    "transcribe": {"encoder_decoder": "transcribe:Transcriber", "ctc": "transcribe_ctc:CtcTranscriber"},
    "answer": {"chat": "answer:Answerer", "encoder_decoder": "captioner:Captioner", "memory": "memory:Narrator"},
    "caption": {"chat": "answer:Answerer", "encoder_decoder": "captioner:Captioner", "memory": "memory:Narrator"},
    "describe": {"memory": "memory:Narrator"},
}


def create(task: str, graphs: Graphs) -> Any:
    """The object that does `task` with these graphs; BundleError where this edgemm has no such kind."""
    kinds = TASKS[task]
    kind = graphs.entry.processing.functions.get(task, next(iter(kinds)))
    if kind not in kinds:
        raise BundleError(
            f"the bundle does {task} as {kind!r}, this edgemm knows {', '.join(kinds)}",
            hint="run: pip install -U edgemm",
        )
    module, name = kinds[kind].split(":")
    return getattr(importlib.import_module(f"edgemm.tasks.{module}"), name)(graphs)
