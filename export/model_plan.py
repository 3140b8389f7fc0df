"""What a family says of one model, before anything is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemm.bundle.manifest import Precision, Processing
from edgemm.bundle.spec import GenerationSpec, TokensSpec
from edgemm.export.graph import GraphPlan
from edgemm.tasks.prompts.base import Context, Prompt


@dataclass(frozen=True)
class Example:
    """A real input: for calibration, and to compare the bundle with the original."""

    image: NDArray[np.uint8] | None = None
    audio: NDArray[np.float32] | None = None
    question: str = "What is in the picture?"


@dataclass(frozen=True)
class Reference:
    """What the original says to an example: token ids, class probabilities [classes], or any numbers that must agree.

    `values` is what a task returns that is neither, such as an embedding. `rows` [N, values] must agree in any order:
    the class scores and boxes of every query.
    """

    tokens: tuple[int, ...] = ()
    probabilities: NDArray[np.float32] | None = None
    values: NDArray[np.float32] | None = None
    rows: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ReadyGraph:
    """A component that comes as ONNX and is taken as it is, or after `adapt` gave it the contract's names."""

    role: str
    path: Path
    precision: Precision = "fp32"
    adapt: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None


@dataclass(frozen=True)
class Original:
    """The untouched model of transformers: what graphs are compared with, and what is trained.

    A chat model has the `context` of its prompts, and `inputs_of`: what it is called with beside the prompt's ids. A
    dual encoder has `towers`: the features of what its first graph is fed (and the example that it was made of), and of
    what its second is. Any other takes what `ModelPlan.feeds` makes of an example, after `renamed`.
    """

    model: Any
    renamed: Callable[[dict[str, Any]], dict[str, Any]] = dict
    towers: tuple[Callable[[Any, Example], Any], Callable[[Any], Any]] | None = None
    context: Context | None = None
    inputs_of: Callable[[Prompt, Example], dict[str, Any]] | None = None


@dataclass(frozen=True)
class ModelPlan:
    """One model: its graphs, its host side, and the original's answer to an example.

    `feeds` turns an example into inputs of the encoder-like component that `--int8` calibrates.
    `files` are written into the bundle as they are, by relative path. `takes` is what an example must have for
    the first task. `task_labels` are those of tasks that have others than `labels`; `references` answer for further
    tasks as `reference` does for the first; `beside` are the other models that the checkpoint holds, by name.
    """

    model_type: str
    tasks: tuple[str, ...]
    graphs: tuple[GraphPlan, ...]
    processing: Processing
    tokens: TokensSpec | None = None
    generation: GenerationSpec | None = None
    context: int = 0
    ready: tuple[ReadyGraph, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    feeds: Callable[[Example], dict[str, dict[str, NDArray[Any]]]] | None = None
    reference: Callable[[Example], Reference] | None = None
    original: Original | None = None
    takes: Literal["image", "audio", "question"] = "image"
    task_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: Mapping[str, Callable[[Example], Reference]] = field(default_factory=dict)
    beside: Mapping[str, ModelPlan] = field(default_factory=dict)
