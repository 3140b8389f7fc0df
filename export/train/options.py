"""How a model is trained: every choice of one run, as text and numbers that a file can hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgemm.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainOptions:
    """One run. `steps` 0 means `epochs`; the others by the names that torch and transformers give them.

    `warmup` is the share of all steps, `clip` the largest norm of the gradients (0: none). `evaluate_every` and
    `save_every` are steps; 0 means once an epoch. `patience` is how many evaluations without a better `metric` are
    borne (0: all). `dropout` None leaves the checkpoint's. `freeze` and `unfreeze` are stages or patterns of
    parameters' names, in this order (see `edgemm.export.train.freezing`). `lora` is the rank of adapters (0: none),
    which are merged in the end. `tower_cache` is a directory where what frozen towers make of the media is kept, for
    other runs too ("": beside the run, until its end).
    """

    epochs: float = 3.0
    steps: int = 0
    batch: int = 8
    accumulate: int = 1
    optimizer: str = "AdamW"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    label_smoothing: float = 0.0
    dropout: float | None = None
    precision: Precision = "fp32"
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    lora: int = 0
    lora_targets: tuple[str, ...] = ()
    augment: bool = False
    metric: str = ""
    patience: int = 0
    evaluate_every: int = 0
    evaluate_limit: int = 256
    save_every: int = 0
    max_new_tokens: int = 64
    workers: int = 0
    tower_cache: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that make no run."""
        if self.batch < 1 or self.accumulate < 1 or self.epochs <= 0 or self.steps < 0:
            raise UsageError("a run needs a batch and steps", hint="give --batch 8 --epochs 3, or --steps 100")
        if not 0 <= self.warmup < 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("--warmup and --label-smoothing are shares between 0 and 1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"no precision {self.precision!r}", hint=f"one of {', '.join(PRECISIONS)}")

    @property
    def digest(self) -> str:
        """SHA-256 of all that is said here."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()
