"""What the live pipeline needs of a model, so that tests can give it a five-line one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemm.live.speech import VoiceActivity
from edgemm.results import Answer, Caption, Description, Detections, Labels, Transcript


class LiveModel(Protocol):
    """A loaded bundle. `tasks` names what it can; calling anything else is a bug."""

    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def runtimes(self) -> dict[str, str]: ...
    @property
    def precisions(self) -> dict[str, str]: ...

    def classify(self, image: NDArray[np.uint8], *, top: int = 5) -> Labels: ...
    def detect(self, image: NDArray[np.uint8], *, score_min: float = 0.5) -> Detections: ...
    def caption(self, image: NDArray[np.uint8], *, max_new_tokens: int = 64) -> Caption: ...
    def describe(
        self, frames: Sequence[NDArray[np.uint8]], times_s: Sequence[float] | None = None, *, max_new_tokens: int = 64
    ) -> Description: ...
    def transcribe(
        self, samples: NDArray[np.float32], *, sample_rate_hz: int = 16_000, language: str | None = None
    ) -> Transcript: ...
    def answer(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer: ...
    def voice_activity(self) -> VoiceActivity: ...
    def warm_up(self, tasks: Sequence[str]) -> Any: ...
