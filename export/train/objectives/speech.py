"""Speech recognition: encoder–decoders (Whisper, Moonshine) by cross entropy, CTC encoders by theirs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import ModelPlan
from edgemm.export.train.data import Sample
from edgemm.export.train.objectives.base import Batch, Objective, to, together
from edgemm.export.train.options import TrainOptions
from edgemm.tasks.metrics import wer


class _Speech(Objective):
    fields = ("audio", "text")
    metric = "wer"

    def expected(self, sample: Sample) -> str:
        return sample.texts()[0]

    def told(self, sample: Sample, said: Any) -> dict[str, Any]:
        return {"text": said}

    def judge(self, expected: Sequence[str], said: Sequence[str]) -> dict[str, float]:
        return {"wer": wer(expected, said)}

    def batch(self, samples: Sequence[Sample], *, training: bool) -> Batch:
        parts = []
        for sample in samples:
            feeds = self.feeds(sample, training=training)
            parts.append({**feeds, "labels": torch.tensor([self.labels(sample.texts()[0])])})
        return {"parts": together(parts, ("labels",))}

    def labels(self, text: str) -> list[int]:
        """What the model should write for a text."""
        raise NotImplementedError


class SpeechToText(_Speech):
    """An encoder–decoder that is taught the tokens of what was said, and the end of them."""

    def __init__(self, checkpoint: Checkpoint, plan: ModelPlan, options: TrainOptions) -> None:
        super().__init__(checkpoint, plan, options)
        if self.model.config.pad_token_id is None:
            # What labels are shifted with wants one; where it stands, nothing is counted.
            self.model.config.pad_token_id = plan.tokens.eos[0] if plan.tokens else 0

    @cached_property
    def _prefix(self) -> list[int]:
        """What stands between the start token and the words: language and task, where the model knows several."""
        settings = self.model.generation_config
        languages = getattr(settings, "lang_to_id", None) or {}
        ids = [languages.get("<|en|>", next(iter(languages.values())))] if languages else []
        tasks = getattr(settings, "task_to_id", None) or {}
        ids += [tasks["transcribe"]] if "transcribe" in tasks else []
        silent = getattr(settings, "no_timestamps_token_id", None)
        return [*ids, *([silent] if silent is not None else [])]

    def labels(self, text: str) -> list[int]:
        tokens = self.plan.tokens
        assert tokens is not None
        return [*self._prefix, *self.tokenizer.encode(text, specials=False), tokens.eos[0]]

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        said = []
        for sample in samples:
            feeds = to(model.device, self.feeds(sample, training=False))
            ids = model.generate(**feeds, max_new_tokens=self.options.max_new_tokens, do_sample=False)[0].tolist()
            said.append(self.tokenizer.decode(ids).strip())
        return said


class SpeechToLetters(_Speech):
    """An encoder with a CTC head (Graves et al., 2006)."""

    @cached_property
    def _letters(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.plan.labels)}

    def labels(self, text: str) -> list[int]:
        spec = self.plan.processing.ctc
        assert spec is not None
        known = self._letters
        shouts = "A" in known and "a" not in known
        gap = spec.delimiter or " "
        written = [gap if c == " " else c for c in (text.upper() if shouts else text)]
        return [known[c] for c in written if c in known]

    def say(self, model: Any, samples: Sequence[Sample]) -> list[str]:
        from edgemm.export.ctc import collapsed

        spec = self.plan.processing.ctc
        assert spec is not None
        said = []
        for sample in samples:
            logits = model(**to(model.device, self.feeds(sample, training=False))).logits
            ids = collapsed(logits[0].argmax(-1).tolist(), spec.blank)
            said.append("".join(self.plan.labels[i] for i in ids).replace(spec.delimiter or " ", " ").strip())
        return said
